"""`stage: ppo` with a reward model of `stage: rm`, as a user runs both, on a real Ray."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raytune.config.load import load_config
from raytune.errors import ModelError
from raytune.launch import Summary, train
from raytune.launch_rl import learn
from tests.helpers.assassin import Assassin, Murder, processes_of, ranks_of
from tests.helpers.runs import run_keys, write_pairs
from tests.helpers.trained import WEIGHTS

pytestmark = pytest.mark.usefixtures("ray_local")

# Keeps what it is shown, a line a group, beside itself.
KEEPER = """
import json, pathlib

def keep(completions, token_rows, **columns):
    with pathlib.Path(__file__).with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(token_rows) + "\\n")
    return [float(len(row)) for row in token_rows]
"""


def reward_model(home: Path, method: str) -> Path:
    """The folder of a reward model, trained for a few steps so that its scores are its own."""
    write_pairs(home / "data", count=16)
    keys = run_keys(
        home, stage="rm", dataset="pairs", finetuning_type=method, output_dir=str(home / "rm"), num_train_epochs=2
    )
    return train(load_config(keys)).folder


def ppo(home: Path, model: Path, method: str, **keys: Any) -> Summary:
    (home / "keeper.py").write_text(KEEPER)
    shared = {
        "stage": "ppo",
        "finetuning_type": method,
        "reward_model": str(model),
        "reward_model_type": method,
        "reward_funcs": f"{home / 'keeper.py'}:keep",
        "reward_weights": "0.5,2",
        "rollout_backend": "hf",
        "max_new_tokens": 6,
        "num_generations": 2,
        "global_batch_size": 4,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
    }
    return train(load_config(run_keys(home, **shared, **keys)))


def by_hand(home: Path, model: Path, method: str, rows: list[list[int]]) -> list[float]:
    """transformers' last hidden state at a row's last token, times the weights in the reward model's file."""
    trained: Any = AutoModelForCausalLM.from_pretrained(home / "model" if method == "lora" else model)
    if method == "lora":
        trained = PeftModel.from_pretrained(trained, str(model))
    head = load_file(model / "value_head.safetensors")
    scores = []
    for row in rows:
        with torch.no_grad():
            hidden = trained(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1]
        scores.append(float(hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]))
    return scores


@pytest.mark.parametrize(("method", "critic"), [("lora", "own"), ("full", "shared")])
def test_rewards_are_the_scores_of_the_trained_model(tmp_path, method, critic):
    run_keys(tmp_path)
    model = reward_model(tmp_path, method)
    summary = ppo(tmp_path, model, method, critic=critic, save_steps=1)
    log = [json.loads(line) for line in (summary.folder / "trainer_log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "reward" in line]
    groups = [json.loads(line) for line in (tmp_path / "keeper.jsonl").read_text().splitlines()]
    # Nothing is drawn ahead, so the groups of a step are told apart by when they were scored.
    assert len(steps) == 2
    assert len(groups) == 8
    for step, part in zip(steps, (groups[:4], groups[4:]), strict=True):
        rows = [row for group in part for row in group]
        scores = by_hand(tmp_path, model, method, rows)
        assert max(scores) - min(scores) > 1e-3
        mean, length = sum(scores) / len(rows), sum(map(len, rows)) / len(rows)
        assert step["reward_reward_model"] == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert step["reward_keep"] == pytest.approx(length)
        assert step["reward"] == pytest.approx(0.5 * length + 2 * mean, rel=1e-5)
    # The policy begins as its own reference.
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert abs(steps[1]["kl"]) > 1e-6
    assert "value_error" in steps[0]
    kept = {path.parent.name for path in (summary.folder / "checkpoint-2").glob("*/value_head.safetensors")}
    assert kept == ({"critic"} if critic == "own" else set())


# Each recovery adds a phase of experience, update and publish; what the reward model scored is not scored again.
DEATHS = (
    Murder("rollout", 1, "RewardModelWorker"),
    Murder("experience", 1, "RewardModelWorker"),
    Murder("update", 1, "RewardModelWorker"),
    Murder("publish", 2, "RewardModelWorker"),
    Murder("save", 1, "RewardModelWorker"),
    Murder("experience", 2, "critic"),
    Murder("update", 2, "critic"),
    Murder("recovery", 2, "RewardModelWorker"),
    Murder("update", 3, "trainer"),
)


def test_a_critic_or_reward_model_that_dies_is_replaced_and_the_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    run_keys(tmp_path)
    model = reward_model(tmp_path, "lora")
    keys: dict[str, Any] = {"critic": "own", "save_steps": 1}
    whole = ppo(tmp_path, model, "lora", **keys, output_dir=str(tmp_path / "whole")).folder
    ranks = ranks_of(monkeypatch)

    def find(murder: Murder) -> psutil.Process:
        rank = ranks.get((murder.title, murder.place))
        return processes_of(murder.title)[murder.place] if rank is None else rank

    assassin = Assassin(DEATHS, find)
    monkeypatch.setattr(learn, "watchdog_of", lambda folder, **deadlines: assassin)
    disturbed = ppo(tmp_path, model, "lora", **keys, output_dir=str(tmp_path / "disturbed")).folder
    assert set(assassin.done) == set(DEATHS)
    for weights in (WEIGHTS, f"checkpoint-2/critic/{WEIGHTS}", "checkpoint-2/critic/value_head.safetensors"):
        assert (disturbed / weights).read_bytes() == (whole / weights).read_bytes(), weights


def test_what_is_no_reward_model_is_refused_before_anything_starts(tmp_path):
    run_keys(tmp_path)
    with pytest.raises(ModelError, match="is a whole model, and reward_model_type is lora"):
        ppo(tmp_path, tmp_path / "model", "lora")
    with pytest.raises(ModelError, match=r"is no reward model: it has no value_head\.safetensors"):
        ppo(tmp_path, tmp_path / "model", "full")
