"""Runs of grpo in which everything dies once in each phase: they end with the bytes of a run that nothing disturbed.

The answers of a seed are equal to the bit here (transformers, float32), so equal weights mean that no prompt was lost,
learned from twice, or answered by other weights.
"""

import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml

from raytune.config.load import load_config
from raytune.engine.checkpoint import CheckpointStore, damaged_files
from raytune.errors import RolloutError
from raytune.launch import Summary, train
from raytune.launch_rl import learn
from raytune.launch_rl.stalls import FILE
from raytune.stages.recovery import Versions
from raytune.stages.state import load_state
from raytune.stages.validation import Validation
from tests.helpers.answering import grpo_keys
from tests.helpers.assassin import Assassin, Murder, processes_of, ranks_of
from tests.helpers.processes import finish, start_python
from tests.helpers.trained import WEIGHTS

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = 8
KEYS: dict[str, Any] = {"max_steps": STEPS, "num_workers": 1, "num_rollouts": 1}
# A step has one phase of each kind, and more of rollout; publish 1 is before step 1, and each recovery adds one.
# A reward worker that died is replaced when there is something to score: until then there is none to kill.
PLAN = (
    Murder("rollout", 1, "RolloutRouter"),
    Murder("experience", 1, "HfReplica"),
    Murder("update", 1, "RewardWorker"),
    Murder("publish", 2, "RolloutRouter"),
    Murder("rollout", 2, "RewardDesk"),
    Murder("save", 2, "HfReplica"),
    Murder("rollout", 3, "HfReplica"),
    Murder("update", 3, "PolicyWorker"),
    Murder("recovery", 1, "HfReplica"),
    Murder("publish", 4, "RewardDesk"),
    Murder("rollout", 5, "RewardWorker"),
    Murder("experience", 5, "RewardDesk"),
    Murder("update", 5, "HfReplica"),
    Murder("save", 4, "RolloutRouter"),
    Murder("publish", 7, "PolicyWorker"),
    Murder("publish", 7, "RewardWorker"),
    Murder("recovery", 2, "RewardDesk"),
    Murder("experience", 8, "RolloutRouter"),
    Murder("save", 6, "PolicyWorker"),
    Murder("save", 6, "RewardWorker"),
    Murder("recovery", 3, "RolloutRouter"),
    Murder("update", 9, "RolloutRouter"),
    Murder("publish", 12, "HfReplica"),
    Murder("save", 7, "RewardDesk"),
    Murder("update", 10, "PolicyWorker", hangs=True),
    Murder("recovery", 4, "RewardWorker"),
    Murder("update", 11, "RewardDesk"),
    Murder("experience", 12, "RewardWorker"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def run(folder: Path, name: str, **keys: Any) -> Summary:
    return train(load_config(grpo_keys(folder, **{**KEYS, "output_dir": str(folder / name), **keys})))


@pytest.fixture(scope="module")
def whole(folder: Path, ray_local: None) -> Path:
    return run(folder, "whole").folder


def numbers(folder: Path) -> list[tuple[float, ...]]:
    """What a run logged of each step that does not depend on the time."""
    lines = map(json.loads, (folder / "trainer_log.jsonl").read_text().splitlines())
    return [tuple(line[key] for key in ("current_steps", "reward", "grad_norm", "lr", "epoch")) for line in lines]


def assert_same_end(folder: Path, reference: Path) -> None:
    assert (folder / WEIGHTS).read_bytes() == (reference / WEIGHTS).read_bytes()
    assert numbers(folder) == numbers(reference)
    store = CheckpointStore(folder)
    assert store.steps() == list(range(1, STEPS + 1))
    assert not any(damaged_files(store.path(step)) for step in store.steps())


def test_a_run_in_which_everything_dies_ends_with_the_same_bytes(folder, whole, monkeypatch, caplog):
    """Two replicas draw here, and one did there: without staleness that makes no difference either."""
    assassin = Assassin(PLAN)
    monkeypatch.setattr(learn, "watchdog_of", lambda folder, **deadlines: assassin)
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    disturbed = run(folder, "disturbed", num_rollouts=2, ddp_timeout=20).folder
    assert set(assassin.done) == set(PLAN)
    assert "rank 0 did not finish within 20 s" in caplog.text
    assert assassin.survivors() == []
    assert caplog.text.count("new ranks go on from") >= 3
    assert_same_end(disturbed, whole)


# Of two ranks the second dies while answers are drawn, and one of those that replace them as it is started.
AHEAD = (
    Murder("rollout", 2, "PolicyWorker", place=1),
    Murder("recovery", 1, "PolicyWorker", newborn=True),
    Murder("validation", 1, "HfReplica"),
    Murder("update", 3, "RolloutRouter"),
    Murder("publish", 5, "HfReplica"),
    Murder("experience", 6, "PolicyWorker", place=0),
    Murder("validation", 3, "RewardWorker"),
)


def test_nothing_is_lost_of_a_run_that_draws_ahead_on_two_ranks(folder, monkeypatch, caplog):
    """What is learned from is not equal to the bit here: each prompt is learned from once, by weights near enough."""
    ranks = ranks_of(monkeypatch)

    def find(murder: Murder) -> psutil.Process:
        if murder.title == "PolicyWorker":
            return ranks["trainer", murder.place]
        return processes_of(murder.title)[murder.place]

    published: list[tuple[int, int]] = []
    give = Versions.give

    def give_and_note(versions: Versions, step: int) -> int:
        published.append((give(versions, step), step))
        return published[-1][0]

    monkeypatch.setattr(Versions, "give", give_and_note)
    assassin = Assassin(AHEAD, find)
    assassin.watch(monkeypatch, Validation, "run", name="validation")
    monkeypatch.setattr(learn, "watchdog_of", lambda folder, **deadlines: assassin)
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    keys = {"num_workers": 2, "num_rollouts": 2, "max_staleness": 1, "max_steps": 6, "max_new_tokens": 48}
    evaluation = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 2, "eval_num_generations": 2}
    end = run(folder, "ahead", **keys, **evaluation, transcript_steps=1).folder

    assert set(assassin.done) == set(AHEAD)
    assert assassin.survivors() == []
    assert caplog.text.count("new ranks go on from") == 3
    log = [json.loads(line) for line in (end / "trainer_log.jsonl").read_text().splitlines()]
    steps, validations = ([line for line in log if ("eval_reward" in line) is told] for told in (False, True))
    assert [line["current_steps"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["current_steps"] for line in validations] == [2, 4, 6]
    assert all(0 < line["eval_reward"] < 1 and line["eval_unscorable"] == 0 for line in validations)
    assert all(0 < line["reward"] < 1 and line["unscorable"] == 0 and line["grad_norm"] > 0 for line in steps)
    assert max(line["staleness_max"] for line in steps) == 1
    store = CheckpointStore(end)
    assert store.steps() == [1, 2, 3, 4, 5, 6]
    assert not any(damaged_files(store.path(step)) for step in store.steps())

    versions = dict(published)
    assert len(versions) == len(published)
    learned: dict[int, set[int]] = {}
    for line in map(json.loads, (end / "transcripts.jsonl").read_text().splitlines()):
        learned.setdefault(line["prompt_number"], set()).add(line["step"])
        for version, _, _ in line["versions"]:
            # Step n learns on the weights of step n - 1.
            assert abs(line["step"] - 1 - versions[version]) <= 1
    # Two prompts a step, none of them twice and none that was passed over.
    assert sorted(learned) == list(range(12))
    assert all(len(where) == 1 for where in learned.values())
    assert load_state(store.path(6)).prompts == (12, ())


def test_a_killed_driver_goes_on_and_ends_with_the_same_bytes(folder, whole):
    here = str(ray.get_runtime_context().gcs_address)
    keys = {**KEYS, "output_dir": str(folder / "killed"), "ray_address": here}
    file = folder / "killed.yaml"
    file.write_text(yaml.safe_dump(grpo_keys(folder, **keys)))
    for phase, count in (("publish", 3), ("save", 2)):
        process = start_python("-m", "tests.helpers.dying", phase, str(count), str(file))
        said = finish(process)
        assert process.returncode == -signal.SIGKILL, said
        assert not (folder / "killed" / WEIGHTS).exists()
    run(folder, "killed", ray_address=here)
    assert_same_end(folder / "killed", whole)


def test_a_stalled_phase_is_named_with_the_stacks_of_all_actors(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    monkeypatch.setattr(learn, "wait_deadline", lambda cfg: 10.0)
    rewards = f"{folder / 'rewards.py'}:hang"
    with pytest.raises(
        RolloutError, match=r"no group of answers was finished within 10 s; 2 are pending, 2 of them drawn"
    ):
        run(folder, "stalled", reward_funcs=rewards, rollout_timeout=8)
    assert re.search(r"phase rollout has lasted for \d+ s, of at most 8 s: all stacks are in ", caplog.text)
    seen = (folder / "stalled" / FILE).read_text()
    for what in ("driver", "rank 0", "rollout replica", "rollout router", "reward desk", "reward worker"):
        assert f"== {what}, node " in seen
    assert re.search(r'File "[^"]*rewards.py", line \d+ in hang', seen)
    assert re.search(r'File "[^"]*gather.py", line \d+ in _wait_for_one', seen)
