"""A whole run of grpo on a real Ray, with an environment, held-out prompts, and what a person sees of it."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.trained import run

ENVIRONMENT = """
from raytune.stages.environment import Reply


class Nods:
    async def reset(self, prompt):
        self.turns = 0

    async def step(self, text, ids):
        self.turns += 1
        return Reply("(and so?)") if self.turns < 3 else Reply(done=True)
"""


@pytest.fixture(scope="module")
def folder(home: Path, ray_local: None) -> Path:
    """The output of a run whose answers have up to three turns; letters and digits end one."""
    file = home / "nods.py"
    file.write_text(ENVIRONMENT)
    return run(
        home,
        stage="grpo",
        rollout_backend="hf",
        environment=f"{file}:Nods",
        stop_strings=[*string.ascii_letters, *string.digits],
        reward_funcs="length",
        num_generations=4,
        global_batch_size=4,
        max_new_tokens=64,
        max_steps=2,
        val_size=2,
        eval_strategy="steps",
        eval_steps=2,
        eval_on_start=True,
        eval_num_generations=2,
        transcript_steps=1,
        report_to="tensorboard",
        plot_loss=True,
        output_dir=str(home / "grpo"),
    ).folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def log(folder: Path) -> list[dict[str, Any]]:
    return lines(folder / "trainer_log.jsonl")


def test_what_an_environment_said_is_put_behind_and_not_trained_on(folder, log):
    talks = [one for one in lines(folder / "transcripts.jsonl") if "turns" in one]
    assert talks
    for talk in talks:
        assert "".join(turn["text"] for turn in talk["turns"]) == talk["answer"]
        said = [turn["text"] for turn in talk["turns"] if turn["from"] == "environment"]
        assert set(said) == {"(and so?)"}
        # A conversation begins with the policy, and goes on with it after each reply.
        assert [turn["from"] for turn in talk["turns"]] == ["policy", "environment"] * len(said) + ["policy"]
    # The trainer's log-probs are those of the engine only where both have seen the same ids before a token, and the
    # engine gives 0 for an environment's: a random model's are about -5.6.
    steps = [entry for entry in log if "loss" in entry]
    assert max(entry["mismatch_abs_max"] for entry in steps) < 1e-3


def test_each_step_has_a_line_with_all_that_is_watched(log):
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["current_steps"] for entry in steps] == [1, 2]
    watched = "reward reward_length reward_std kl entropy completion_length clip_fraction staleness groups_filtered"
    times = "time_step time_rollout time_reward time_train time_sync tokens_per_second rollout_tokens_per_second"
    gaps = "mismatch_abs mismatch_k3"
    assert set(f"{watched} {times} {gaps}".split()) <= set(steps[0])
    # The first step learns from the weights that the reference is.
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert 5.0 < steps[0]["entropy"] < 5.56  # ln(259) is a uniform one's


def test_held_out_prompts_are_validated_on(folder, log):
    evals = [entry for entry in log if "eval_reward" in entry]
    assert [entry["current_steps"] for entry in evals] == [0, 2]
    assert {"eval_pass@1", "eval_pass@2", "eval_completion_length", "eval_reward_length"} <= set(evals[0])
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["eval_reward"] == evals[-1]["eval_reward"]


def test_a_run_leaves_texts_a_picture_and_its_algorithm(folder):
    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    tags: Any = events.Tags()
    assert "transcripts" in tags["tensors"]
    assert {"train/reward", "train/kl", "eval/reward", "eval/pass@1"} <= set(tags["scalars"])
    assert (folder / "training_reward.png").read_bytes().startswith(b"\x89PNG")
    algorithm = json.loads((folder / "checkpoint-2" / "algorithm.json").read_text())
    assert (algorithm["estimator"]["kind"], algorithm["learn"]["policy"]["clip_low"]) == ("group", 0.2)
