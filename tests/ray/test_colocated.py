"""Ranks and rollout replicas in shared bundles, on a real Ray: taking turns changes when things happen, not what."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.sleepers import ReplicaSleepers
from raytune.config.load import load_config
from raytune.errors import PlacementError
from raytune.launch import train
from raytune.launch_rl import learn
from tests.helpers.assassin import Assassin, Murder
from tests.helpers.runs import run_keys

pytestmark = pytest.mark.usefixtures("ray_local")

# What is measured, not computed.
CLOCKS = ("time_", "seconds_", "elapsed_time", "remaining_time", "throughput", "tokens_per", "rollout_tokens_per")


def grpo(home: Path, **keys: Any) -> Path:
    shared = {
        "stage": "grpo",
        "reward_funcs": "regex",
        "reward_regex": "[a-zA-Z]",
        "rollout_backend": "hf",
        "num_generations": 4,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "global_batch_size": 2,
        "per_device_train_batch_size": 4,
        "cpus_per_worker": 1,
        "max_steps": 3,
        "save_steps": 2,
    }
    return train(load_config(run_keys(home, **shared, **keys))).folder


def numbers(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(CLOCKS)} for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turns")
    run_keys(folder)
    return folder


@pytest.fixture(scope="module")
def apart(home: Path, ray_local: None) -> Path:
    return grpo(home, placement="disaggregated", output_dir=str(home / "apart"))


def assert_same_end(together: Path, apart: Path) -> None:
    assert numbers(together) == numbers(apart)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (together, apart))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_taking_turns_learns_the_same_to_the_bit(home, apart):
    together = grpo(home, placement="colocated", output_dir=str(home / "together"))
    assert_same_end(together, apart)
    assert all(line["grad_norm"] > 0 for line in numbers(apart))
    steps = [json.loads(line) for line in (together / "trainer_log.jsonl").read_text().splitlines()]
    assert all(step["time_sync_turns"] > 0 for step in steps)


# The only replica dies as it draws, in the ranks' turn, and as it is put to sleep; a rank in the replica's turn, and
# when that is half awake. A step has one phase of sleep and two of wake, and the first sleep is before the loop.
TURNS = (
    Murder("rollout", 1, "PolicyWorker"),
    Murder("rollout", 2, "HfReplica"),
    Murder("update", 2, "HfReplica"),
    Murder("sleep", 4, "HfReplica"),
    Murder("wake", 7, "PolicyWorker"),
    Murder("experience", 4, "RolloutRouter"),
)


def test_kills_in_either_s_turn_change_nothing(home, apart, monkeypatch, caplog):
    assassin = Assassin(TURNS)
    assassin.watch(monkeypatch, ReplicaSleepers, "sleep", name="sleep")
    assassin.watch(monkeypatch, ReplicaSleepers, "wake", name="wake")
    monkeypatch.setattr(learn, "watchdog_of", lambda folder, **deadlines: assassin)
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    together = grpo(home, placement="colocated", output_dir=str(home / "disturbed"))
    assert set(assassin.done) == set(TURNS)
    assert not any(victim.is_running() for victim in assassin.victims)
    assert caplog.text.count("new ranks go on from") == 2
    assert_same_end(together, apart)


def test_more_replicas_than_the_cluster_holds_are_refused_at_once(tmp_path):
    with pytest.raises(PlacementError, match=r"the run needs 32 CPUs \(1 x trainer 1, 30 x rollout 1, 1 x reward 1\)"):
        grpo(tmp_path, num_rollouts=30, placement="disaggregated")
    assert not (tmp_path / "out").exists()
