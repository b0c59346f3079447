"""Whole runs of grpo and ppo: real Ray, real vLLM, two trainer ranks, two rollout replicas, all beside each other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from raytune.config.load import load_config
from raytune.launch import train
from tests.helpers.answering import grpo_keys
from tests.helpers.trained import WEIGHTS

pytestmark = pytest.mark.usefixtures("ray_here")

STEPS = 3


def run(folder: Path, **keys: Any) -> tuple[Path, list[dict[str, Any]]]:
    """The output folder of a run, and what it logged of each step."""
    shared = {
        "rollout_backend": "vllm",
        "num_rollouts": 2,
        "num_workers": 2,
        "engine": "ddp",
        "num_generations": 4,
        "global_batch_size": 4,
        "max_steps": STEPS,
        "save_steps": STEPS,
        "logging_steps": 1,
        "kv_cache_gb": 0.25,
    }
    out = train(load_config(grpo_keys(folder, **{**shared, **keys}))).folder
    lines = [json.loads(line) for line in (out / "trainer_log.jsonl").read_text().splitlines()]
    return out, [line for line in lines if "reward" in line]


def moved(folder: Path) -> bool:
    """Whether the trained adapter is more than what LoRA begins with: its second factor is 0 then."""
    weights = load_file(folder / WEIGHTS)
    return any(bool(value.any()) for name, value in weights.items() if "lora_B" in name)


def check(log: list[dict[str, Any]]) -> None:
    """What must hold of any run: trainer and engines agree on every token's probability, each step has all answers."""
    assert [line["current_steps"] for line in log] == list(range(1, STEPS + 1))
    for line in log:
        assert line["mismatch_abs"] < 1e-4
        assert line["staleness"] == 0
        assert 0 <= line["reward"] <= 1
        assert 1 <= line["completion_length"] <= 8
        assert math.isfinite(line["loss"])
        assert line["grad_norm"] > 0


def test_grpo_and_ppo_learn_from_two_engines_with_two_ranks(tmp_path: Path) -> None:
    out, log = run(tmp_path, stage="grpo", output_dir=str(tmp_path / "grpo"))
    check(log)
    assert moved(out)
    out, log = run(
        tmp_path, stage="ppo", num_generations=1, global_batch_size=8, ppo_epochs=2, output_dir=str(tmp_path / "ppo")
    )
    check(log)
    assert moved(out)
    # The reference is the policy before its first update.
    assert abs(log[0]["kl"]) < 1e-4
    assert all(math.isfinite(line["value_error"]) for line in log)
