"""The reward pool: what people's functions do to their process, and what the others notice of it."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from actors.reward import RewardJob, RewardPool
from actors.reward_desk import RewardLimits
from raytune.config.model import ModelConfig
from raytune.config.reward import RewardConfig
from raytune.config.template import TemplateConfig
from raytune.errors import ConfigError, RolloutError
from raytune.stages.samples import ScoredGroup
from tests.helpers.groups import text_group
from tests.helpers.tiny import tiny_model_folder, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
FUNCTIONS = """
import os, pathlib, time

def longer(completions, **columns):
    return [float(len(text)) for text in completions]

def nasty(completions, marks, **columns):
    marks, word = pathlib.Path(marks[0]), completions[0]
    with (marks / word).open("a") as file:
        file.write(str(os.getpid()) + chr(10))
    if word == "dies once" and len((marks / word).read_text().splitlines()) == 1:
        os._exit(1)
    if word == "dies":
        os._exit(1)
    while word == "waits" and not (marks / "released").exists():
        time.sleep(0.05)
    if word == "hangs":
        time.sleep(600)
    return [float("nan") if text == "nan" else 1.0 for text in completions]

def needs(completions, level):
    return [1.0 for _ in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    tiny_model_folder(path / "model")
    (path / "functions.py").write_text(FUNCTIONS)
    return path


def job(folder: Path, *names: str, columns: tuple[str, ...] | None = None) -> RewardJob:
    funcs = tuple(f"{folder / 'functions.py'}:{name}" for name in names)
    model = ModelConfig(model_name_or_path=str(folder / "model"))
    return RewardJob(RewardConfig(reward_funcs=funcs), model, TemplateConfig(template="chatml"), columns, 64)


@pytest.fixture(scope="module")
def pool(ray_local: None, folder: Path) -> Iterator[RewardPool]:
    made = RewardPool(job(folder, "nasty", "longer"), [{"num_cpus": 0}] * 2, RewardLimits(seconds=6.0, attempts=2))
    yield made
    made.close()


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    return tmp_path


def put(marks: Path, *answers: str, number: int = 0, greedy: str | None = None) -> Any:
    columns = {"marks": str(marks), "prompt": "q"}
    return ray.put(text_group(TOKENIZER, answers, number=number, columns=columns, greedy=greedy))


def result(ref: Any) -> ScoredGroup:
    scored = ray.get(ref, timeout=90)
    assert isinstance(scored, ScoredGroup)
    return scored


def pids(marks: Path, word: str) -> list[str]:
    return (marks / word).read_text().splitlines()


def test_a_group_is_scored_by_every_function(pool: RewardPool, marks: Path) -> None:
    scored = result(pool.submit(put(marks, "one", "three", number=7, greedy="of them")))
    assert scored.number == 7
    assert scored.rewards == (1.0 + 3, 1.0 + 5)
    assert scored.baseline == 1.0 + 7
    assert scored.table.means == {"nasty": 1.0, "longer": 4.0}
    assert scored.lengths == (4, 6)
    assert scored.prompt_length == 20
    assert scored.oldest == (0, 0)
    assert scored.finishes == ("stop", "stop")
    assert (scored.payload, scored.rollout_seconds) == (None, 0.5)
    assert scored.reward_seconds > 0


def test_groups_go_to_whoever_is_free(ray_local: None, folder: Path, marks: Path) -> None:
    """One worker is held until five groups have passed it by; a group that is given to it would never be scored."""
    patient = RewardPool(job(folder, "nasty", "longer"), [{"num_cpus": 0}] * 2, RewardLimits(seconds=600.0))
    slow = patient.submit(put(marks, "waits"))
    while not (marks / "waits").exists():
        time.sleep(0.05)
    assert [result(patient.submit(put(marks, "ok"))).rewards for _ in range(5)] == [(3.0,)] * 5
    (marks / "released").touch()
    assert result(slow).rewards == (6.0,)
    assert len(set(pids(marks, "ok"))) == 1
    assert set(pids(marks, "waits")).isdisjoint(pids(marks, "ok"))
    patient.close()


def test_a_dead_workers_group_is_scored_elsewhere(pool: RewardPool, marks: Path) -> None:
    scored = result(pool.submit(put(marks, "dies once", "ok")))
    assert scored.rewards == (10.0, 3.0)
    assert (scored.trouble or "").startswith("the reward worker died: ")
    assert len(set(pids(marks, "dies once"))) == 2


def test_a_function_that_hangs_loses_its_group_only(pool: RewardPool, marks: Path) -> None:
    bad = put(marks, "hangs", "ok", number=5, greedy="ok")
    hanging = pool.submit(bad)
    others = [pool.submit(put(marks, "ok", number=10 + n)) for n in range(8)]
    assert [result(ref).rewards for ref in others] == [(3.0,)] * 8
    lost = result(hanging)
    assert lost.baseline is not None
    assert [math.isnan(reward) for reward in (*lost.rewards, lost.baseline)] == [True] * 3
    assert set(lost.table.errors.values()) == {"scoring took longer than 6 s (2 attempts)"}
    assert lost.table.failures == {"nasty": 2, "longer": 2}
    # The same group again is not worth two more workers.
    assert all(math.isnan(reward) for reward in result(pool.submit(bad)).rewards)
    assert len(pids(marks, "hangs")) == 2


def test_workers_that_die_again_and_again_are_replaced(pool: RewardPool, marks: Path) -> None:
    dying = [pool.submit(put(marks, "dies", number=n)) for n in range(3)]
    good = pool.submit(put(marks, "ok"))
    assert all(math.isnan(result(ref).rewards[0]) for ref in dying)
    assert result(good).rewards == (3.0,)
    assert len(set(pids(marks, "dies"))) == 6


def test_an_answer_that_one_function_fails_to_score_has_no_reward(pool: RewardPool, marks: Path) -> None:
    scored = result(pool.submit(put(marks, "ok", "nan")))
    assert list(map(repr, scored.table.scores)) == ["(1.0, nan)", "(2.0, 3.0)"]
    assert scored.rewards[0] == 3.0
    assert math.isnan(scored.rewards[1])
    assert scored.table.errors == {"nasty": "it gave nan"}


def test_scoring_twice_gives_the_same(pool: RewardPool, marks: Path) -> None:
    group = put(marks, "ok", "nan")
    first, second = (result(ref) for ref in (pool.submit(group), pool.submit(group)))
    assert repr((first.rewards, first.table.scores)) == repr((second.rewards, second.table.scores))


@ray.remote(num_cpus=0)
def draw(group: Any, seconds: float, trouble: str) -> Any:
    time.sleep(seconds)
    if trouble:
        raise RolloutError(trouble)
    return group


def test_a_group_may_still_be_drawn(pool: RewardPool, marks: Path) -> None:
    # Longer than a worker may take: a worker is taken when the group is there.
    late = [
        pool.submit(draw.remote(text_group(TOKENIZER, ["ok"], columns={"marks": str(marks)}), 8.0, ""))
        for _ in range(2)
    ]
    assert result(pool.submit(put(marks, "ok"))).rewards == (3.0,)
    assert [(group.rewards, group.table.errors) for group in map(result, late)] == [((3.0,), {})] * 2
    # Each was given to a worker once; a third stands for the group that was there.
    assert len(pids(marks, "ok")) == 3


def test_what_broke_the_drawing_reaches_the_driver(pool: RewardPool) -> None:
    with pytest.raises(RayTaskError) as caught:
        ray.get(pool.submit(draw.remote(None, 0.0, "no replica is left")), timeout=60)
    assert isinstance(caught.value.cause, RolloutError)
    assert caught.value.cause.what == "no replica is left"


def test_a_desk_that_dies_begins_anew(ray_local: None, folder: Path) -> None:
    made = RewardPool(job(folder, "longer"), [{"num_cpus": 0}], RewardLimits(seconds=6.0, attempts=2))
    assert ray.get(made.decoder, timeout=60).decode([2], skip_special_tokens=True) == ""
    ray.kill(made._desk, no_restart=False)
    assert result(made.submit(ray.put(text_group(TOKENIZER, ["abc"])))).rewards == (3.0,)
    made.close()


def test_a_wrong_function_is_refused_at_launch(ray_local: None, folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs the column 'level'"):
        RewardPool(job(folder, "needs", columns=("prompt",)), [{"num_cpus": 0}])
    with pytest.raises(ConfigError, match="there is no 'absent'"):
        RewardPool(job(folder, "absent"), [{"num_cpus": 0}])
