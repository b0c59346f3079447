"""A trained reward model behind the reward pool: batches over groups, and what happens when it dies or hangs."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.reward import MODEL, RewardJob, RewardPool
from actors.reward_desk import RewardLimits
from actors.reward_model import ModelJob, await_reward_model, start_reward_model
from raytune.config.model import ModelConfig
from raytune.config.reward import RewardConfig
from raytune.config.template import TemplateConfig
from raytune.errors import ModelError
from raytune.stages.samples import ScoredGroup
from tests.helpers.groups import text_group
from tests.helpers.tiny import tiny_model_folder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


class Length:
    """Scores rows by their length; a row of 27 tokens is deadly, one of 28 hangs, both the first time only, and one of
    29 breaks it each time."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def __call__(self) -> "Length":
        return self

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        lengths = [len(row) for row in rows]
        first = not (self.marks / str(max(lengths))).exists()
        (self.marks / str(max(lengths))).touch()
        if 27 in lengths and first:
            os._exit(1)
        if 28 in lengths and first:
            time.sleep(600)
        if 29 in lengths:
            raise RuntimeError("a row of 29")
        return [float(length) for length in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def worker(ray_local: None, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    name, actor = start_reward_model(Length(tmp_path), {"num_cpus": 0})
    await_reward_model(actor)
    yield name, actor
    ray.kill(actor)


def test_groups_that_come_together_are_one_batch(worker: tuple[str, Any]) -> None:
    actor = worker[1]
    refs = [actor.score.remote([[0] * n, [0] * (n + 1)]) for n in range(1, 11)]
    assert ray.get(refs, timeout=60) == [[float(n), float(n + 1)] for n in range(1, 11)]
    assert ray.get(actor.num_batches.remote(), timeout=60) < 10


def answers(*lengths: int) -> Any:
    """Rows of these lengths: 20 tokens of the prompt, the answer and its end."""
    return ray.put(text_group(TOKENIZER, ["x" * (length - 21) for length in lengths]))


def result(ref: Any) -> ScoredGroup:
    scored = ray.get(ref, timeout=120)
    assert isinstance(scored, ScoredGroup)
    return scored


def test_the_pool_asks_it_beside_the_functions(worker: tuple[str, Any], folder: Path) -> None:
    # Weights: one for the function, the last for the model.
    cfg = RewardConfig(reward_funcs=("length",), reward_weights=(0.0, 0.5), reward_time_limit=10.0)
    policy = ModelConfig(model_name_or_path=str(folder))
    job = RewardJob(cfg, policy, TemplateConfig(template="chatml"), None, 64, worker[0])
    pool = RewardPool(job, [{"num_cpus": 0}], RewardLimits(seconds=30.0, attempts=2))
    scored = result(pool.submit(answers(24, 26)))
    assert scored.table.names == ("length", MODEL)
    assert scored.rewards == (12.0, 13.0)

    died = result(pool.submit(answers(24, 27)))
    assert died.rewards == (12.0, 13.5)
    hung = result(pool.submit(answers(28, 24)))
    assert hung.rewards == (14.0, 12.0)
    broke = result(pool.submit(answers(29, 24)))
    assert all(math.isnan(reward) for reward in broke.rewards)
    assert "a row of 29" in broke.table.errors[MODEL]
    assert broke.table.errors[MODEL].endswith("(2 attempts)")
    pool.close()


def test_what_is_no_reward_model_is_refused_at_launch(ray_local: None, folder: Path) -> None:
    policy = ModelConfig(model_name_or_path=str(folder))
    _, actor = start_reward_model(ModelJob(policy, policy, (), 64), {"num_cpus": 0})
    with pytest.raises(ModelError, match="is no reward model"):
        await_reward_model(actor)
    ray.kill(actor)


def test_another_tokenizer_is_refused_at_launch(ray_local: None, folder: Path, tmp_path: Path) -> None:
    policy = ModelConfig(model_name_or_path=str(folder))
    other = ModelConfig(model_name_or_path=str(tiny_model_folder(tmp_path / "other")), add_tokens=("new",))
    _, actor = start_reward_model(ModelJob(policy, other, (), 64), {"num_cpus": 0})
    with pytest.raises(ModelError, match="has another tokenizer"):
        await_reward_model(actor)
    ray.kill(actor)
