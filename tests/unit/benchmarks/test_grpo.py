import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.grpo_figures import GrpoFigures, comparison, reduce
from benchmarks.grpo_reward import different_words
from benchmarks.grpo_task import GrpoTask, our_config, parsed, their_job, write_prompts
from benchmarks.watch import RunError, Step, Watched
from raytune.config.load import load_config

TASK = GrpoTask(
    folder=Path("unused"), model="unused", steps=4, warmup=2, prompts=4, answers=8, tokens=64, method="lora", bf16=True,
    learning_rate=1e-6, seed=1,
)  # fmt: skip
# Steps 3 and 4 take 12 s together and 20 CPU seconds.
WATCHED = Watched(
    steps=(Step(1, 0.0, 30.0, 31.0), Step(2, 0.0, 40.0, 50.0), Step(3, 0.0, 45.0, 60.0), Step(4, 0.0, 52.0, 70.0)),
    seconds=60.0, peak_tree=3 << 30, peak_process=2 << 30,
)  # fmt: skip


def entry(step: int, rollout: float, train: float, reward: float, **more: float) -> dict[str, float]:
    times = {"time_rollout": rollout, "time_train": train}
    return {"current_steps": step, "reward": reward, "completion_length": 60.0, "cut_share": 0.5, **times, **more}


ENTRIES = [entry(1, 9.0, 9.0, 0.25), entry(2, 9.0, 9.0, 9.0), entry(3, 1.0, 3.0, 0.5), entry(4, 2.0, 4.0, 0.75)]


def figures(entries: list[dict[str, float]] = ENTRIES) -> GrpoFigures:
    return reduce(WATCHED, entries, steps=4, warmup=2)


def test_figures_leave_the_warmup_out() -> None:
    found = figures()

    assert (found.step, found.steps_per_hour) == (6.0, 600.0)
    assert (found.rollout, found.train, found.rest) == (1.5, 3.5, 1.0)
    assert (found.cpu, found.first_step) == (10.0, 30.0)
    assert (found.first_reward, found.reward) == (0.25, 0.625)
    assert math.isnan(found.gap)


def test_the_gap_is_that_of_the_steps_after_the_warmup() -> None:
    gaps = (9.0, 9.0, 0.01, 0.03)
    assert figures([{**one, "mismatch_abs": gap} for one, gap in zip(ENTRIES, gaps, strict=True)]).gap == 0.02


def test_a_run_that_missed_a_step_has_no_figures() -> None:
    with pytest.raises(RunError, match="steps 1 to 4"):
        reduce(replace(WATCHED, steps=WATCHED.steps[1:]), ENTRIES, steps=4, warmup=2)


def test_the_table_holds_medians_ratios_and_no_number_that_is_not_known() -> None:
    theirs = figures()
    ours = [replace(theirs, step=step, gap=0.01) for step in (2.0, 1.0, 100.0, 1000.0)]

    table = comparison("lora, bf16", ours, [theirs] * 3, answers=32)

    assert "| seconds a step | 2.00 | 6.00 | 0.33 |" in table
    assert "| steps an hour | 1800 | 600 | 3.00 |" in table
    assert "| answer tokens a step | 1920 | 1920 | 1.00 |" in table
    assert "| answer tokens a second | 960.0 | 320.0 | 3.00 |" in table
    assert "| log-prob gap, mean | 1.0e-02 |  |  |" in table
    assert "pair by pair: 3.00, 6.00, 0.06 times as many" in table, "of a turn that both ended"


def test_prompts_are_short_questions_with_long_answers_again_from_the_first_one(tmp_path: Path) -> None:
    rows = [
        {"instruction": "long answer", "input": "", "output": "x" * 800},
        {"instruction": "short answer", "input": "", "output": "x"},
        {"instruction": "with input", "input": "y", "output": "x" * 800},
        {"instruction": "q" * 161, "input": "", "output": "x" * 800},
        {"instruction": "another", "input": "", "output": "x" * 800},
    ]
    (tmp_path / "alpaca_en_demo.json").write_text(json.dumps(rows))

    write_prompts(tmp_path, tmp_path / "data", 5, seed=1)

    prompts = json.loads((tmp_path / "data" / "prompts.json").read_text())
    questions = [prompt["messages"][-1]["content"] for prompt in prompts]
    assert set(questions) == {"long answer", "another"}
    assert questions[0::2] == [questions[0]] * 3
    assert questions[1::2] == [questions[1]] * 2


def test_both_programs_draw_the_same_answers_a_step(tmp_path: Path) -> None:
    keys = their_job(TASK, tmp_path, parsed(("micro_batch=16", "dtype=bfloat16", "bf16=false")))["keys"]
    ours = load_config(our_config(replace(TASK, model="smollm2-135m-instruct"), tmp_path)).config

    assert (keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"], keys["bf16"]) == (16, 2, False)
    assert keys["model_init_kwargs"]["dtype"] == "bfloat16"
    assert ours.train.global_batch_size is not None
    assert ours.train.global_batch_size * ours.rl.num_generations == 32
    assert (ours.sampling.max_new_tokens, ours.sampling.temperature) == (64, keys["temperature"])
    assert (ours.rl.kl_coef, ours.rl.ppo_epochs, ours.rl.num_mini_batches) == (0.0, 1, 1)


def test_settings_become_python_values() -> None:
    assert parsed(("a=true", "b=4", "c=0.5", "d=sdpa", "e=null")) == {
        "a": True,
        "b": 4,
        "c": 0.5,
        "d": "sdpa",
        "e": None,
    }


def test_the_reward_counts_different_words_of_texts_and_of_messages() -> None:
    text = "One two TWO three"
    assert different_words([text, [{"role": "assistant", "content": text}], ""]) == [3 / 64, 3 / 64, 0.0]
