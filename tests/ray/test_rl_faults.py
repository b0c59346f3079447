"""Runs of grpo in which everything dies once in each phase: they end with the bytes of a run that nothing disturbed.

The answers of a seed are equal to the bit here (transformers, float32), so equal weights mean that no prompt was lost,
learned from twice, or answered by other weights.
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from raytune.config.load import load_config
from raytune.engine.checkpoint import CheckpointStore, damaged_files
from raytune.launch import Summary, train
from raytune.launch_rl import learn
from tests.helpers.answering import grpo_keys
from tests.helpers.assassin import Assassin, Murder
from tests.helpers.trained import WEIGHTS

pytestmark = pytest.mark.usefixtures("ray_local")

STEPS = 10
KEYS: dict[str, Any] = {"max_steps": STEPS, "num_workers": 2, "num_rollouts": 2}
# Of the phases: each step has a rollout phase or more, one update, publish and save; publish 1 is before step 1.
PLAN = (
    Murder("rollout", 1, "RolloutRouter"),
    Murder("publish", 2, "RolloutRouter"),
    Murder("rollout", 3, "HfReplica"),
    Murder("update", 3, "HfReplica", place=1),
    Murder("rollout", 5, "RewardWorker"),
    Murder("update", 5, "PolicyWorker", place=1),
    Murder("publish", 7, "PolicyWorker"),
    Murder("save", 6, "PolicyWorker"),
    Murder("recovery", 3, "HfReplica"),
    Murder("update", 10, "RolloutRouter"),
    Murder("publish", 11, "HfReplica"),
    Murder("save", 9, "RolloutRouter"),
    Murder("save", 10, "RewardDesk"),
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
    assassin = Assassin(PLAN)
    monkeypatch.setattr(learn, "watchdog_of", lambda cfg, folder: assassin)
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    disturbed = run(folder, "disturbed").folder
    assert set(assassin.done) == set(PLAN)
    assert caplog.text.count("new ranks go on from") >= 3
    assert_same_end(disturbed, whole)


def test_one_replica_draws_what_two_do(folder, whole):
    assert_same_end(run(folder, "one-replica", num_rollouts=1).folder, whole)
