"""Whole runs on a real Ray with a tiny model: what they leave, and ranks and engines that agree."""

import json
from pathlib import Path
from typing import Any

import pytest

from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import PlacementError, TrainError
from raytune.launch import Summary
from tests.helpers.trained import LONG, WEIGHTS, cut_after, losses, run

pytestmark = pytest.mark.usefixtures("ray_local")


def test_a_run_leaves_what_it_promises(home):
    summary = run(
        home, output_dir=str(home / "files"), val_size=4, plot_loss=True, report_to="tensorboard", num_train_epochs=2
    )
    names = {path.name for path in summary.folder.iterdir()}
    assert {
        WEIGHTS,
        "adapter_config.json",
        "tokenizer.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "train_results.json",
        "all_results.json",
        "eval_results.json",
        "training_loss.png",
        "resolved_config.json",
        "README.md",
        "runs",
        "checkpoint-6",
    } <= names
    assert (summary.folder / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((summary.folder / "runs").glob("events.out.tfevents*"))
    entry = json.loads((summary.folder / "trainer_log.jsonl").read_text().splitlines()[0])
    assert {
        "current_steps",
        "total_steps",
        "loss",
        "lr",
        "epoch",
        "percentage",
        "elapsed_time",
        "remaining_time",
    } <= set(entry)
    results = json.loads((summary.folder / "all_results.json").read_text())
    assert {"train_loss", "train_runtime", "train_samples_per_second", "eval_loss", "eval_accuracy"} <= set(results)
    assert results["num_input_tokens_seen"] > 0


@pytest.fixture(scope="module", params=["lora", "full"])
def alone(request: pytest.FixtureRequest, home: Path) -> tuple[dict[str, Any], Summary]:
    """Keys of a run with evaluation, and that run on one rank."""
    keys = {"finetuning_type": request.param, "val_size": 4, "eval_strategy": "epoch", "learning_rate": 0.001}
    return keys, run(home, **keys, output_dir=str(home / f"one-{request.param}"))


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_ranks_log_the_losses_of_one(home, alone, engine):
    keys, one = alone
    folder = home / f"{engine}-{keys['finetuning_type']}"
    two = run(home, **keys, output_dir=str(folder), num_workers=2, engine=engine)
    assert len(losses(one.folder)) == 3
    assert losses(two.folder) == pytest.approx(losses(one.folder), abs=1e-4)
    assert two.results["eval"]["eval_loss"] == pytest.approx(one.results["eval"]["eval_loss"], abs=1e-4)


def test_the_number_of_ranks_may_change_between_save_and_resume(home, whole):
    """From one rank to two, sharded and then not, and back to one."""
    folder = whole
    for step, engine, ranks in ((6, "fsdp2", 2), (12, "ddp", 2), (18, "single", 1)):
        folder = cut_after(step, folder, home / f"from-{step}-{engine}")
        run(home, **LONG, output_dir=str(folder), num_workers=ranks, engine=engine)
        assert len(losses(folder)) == 30
        assert losses(folder) == pytest.approx(losses(whole), abs=1e-4)


def test_the_best_model_is_the_published_one(home):
    keys = {
        "val_size": 6,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "learning_rate": 0.5,
        "num_train_epochs": 4,
    }
    folder = run(home, **keys, output_dir=str(home / "best")).folder
    state = json.loads((folder / "trainer_state.json").read_text())
    evals = {e["current_steps"]: e["eval_loss"] for e in state["log_history"] if "eval_loss" in e}
    assert state["best_step"] == min(evals, key=lambda step: evals[step])
    best = folder / f"checkpoint-{state['best_step']}" / WEIGHTS
    assert (folder / WEIGHTS).read_bytes() == best.read_bytes()


def test_more_ranks_than_the_cluster_has_is_said_in_one_line(home):
    with pytest.raises(PlacementError, match=r"needs 20 CPUs, the cluster has 8 .*Set num_workers: 8"):
        run(home, num_workers=20, global_batch_size=20, output_dir=str(home / "many"))


def test_a_nan_loss_names_step_and_rows_and_keeps_the_last_checkpoint(home):
    with pytest.raises(TrainError, match=r"step \d+: the .* training stopped before the weights changed.*rows"):
        run(home, learning_rate=1e30, max_grad_norm=0, output_dir=str(home / "nan"), save_steps=1, num_train_epochs=4)
    assert CheckpointStore(home / "nan").latest() is not None
