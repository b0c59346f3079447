"""Whole runs on a real Ray with a tiny model: ranks and engines agree, interrupted runs end with the same bytes."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from raytune.config.load import load_config
from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import ConfigError, PlacementError, TrainError
from raytune.launch import Summary, train
from tests.helpers.processes import finish, start_cli, wait_for
from tests.helpers.runs import run_keys

pytestmark = pytest.mark.usefixtures("ray_local")

WEIGHTS = "adapter_model.safetensors"


def run(folder: Path, **keys: Any) -> Summary:
    return train(load_config(run_keys(folder, **keys)))


def losses(folder: Path) -> list[float]:
    lines = (folder / "trainer_log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data and cache that the runs of this file share."""
    folder = tmp_path_factory.mktemp("runs")
    run_keys(folder)
    return folder


@pytest.fixture(scope="module")
def whole(home: Path, ray_local: None) -> Path:
    """A run of 30 steps (ten epochs of three) that nothing disturbed; every third step was saved."""
    return run(home, num_train_epochs=10, save_steps=3, output_dir=str(home / "whole")).folder


LONG = {"num_train_epochs": 10, "save_steps": 3}


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


@pytest.mark.parametrize(("engine", "method"), [("ddp", "lora"), ("fsdp2", "lora"), ("ddp", "full"), ("fsdp2", "full")])
def test_two_ranks_log_the_losses_of_one(home, engine, method):
    keys = {"finetuning_type": method, "val_size": 4, "eval_strategy": "epoch", "learning_rate": 0.001}
    one = run(home, **keys, output_dir=str(home / f"one-{method}"), overwrite_output_dir=True)
    two = run(home, **keys, output_dir=str(home / f"{engine}-{method}"), num_workers=2, engine=engine)
    assert len(losses(one.folder)) == 3
    assert losses(two.folder) == pytest.approx(losses(one.folder), abs=1e-4)
    assert two.results["eval"]["eval_loss"] == pytest.approx(one.results["eval"]["eval_loss"], abs=1e-4)


@pytest.mark.parametrize("step", [3, 15])
def test_resuming_at_an_epochs_end_gives_the_same_bytes(home, whole, step):
    """A checkpoint every three steps is one at every epoch's end."""
    cut = home / f"cut-{step}"
    shutil.copytree(whole, cut)
    store = CheckpointStore(cut)
    for other in store.steps():
        if other > step:
            shutil.rmtree(store.path(other))
    (cut / WEIGHTS).unlink()
    run(home, **LONG, output_dir=str(cut))
    assert (cut / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert losses(cut) == losses(whole)


def test_another_adapter_shape_is_refused_before_anything_starts(home, whole):
    with pytest.raises(ConfigError, match=r"lora_rank was 4, is now 8.* set back what changed"):
        run(home, **LONG, lora_rank=8, output_dir=str(whole))


def test_a_killed_driver_goes_on_and_ends_with_the_same_bytes(home, whole):
    folder = home / "killed"
    process = start_cli(home, **LONG, output_dir=str(folder))
    wait_for(folder / "checkpoint-6", process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not (folder / WEIGHTS).exists()
    process = start_cli(home, **LONG, output_dir=str(folder))
    error = finish(process)
    assert process.returncode == 0, error
    assert "resuming from" in error
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_killed_rank_ends_the_run_with_its_name_and_a_second_run_finishes_it(home):
    reference = run(home, **LONG, output_dir=str(home / "two"), num_workers=2).folder
    folder = home / "two-killed"
    process = start_cli(home, **LONG, output_dir=str(folder), num_workers=2)
    wait_for(folder / "checkpoint-6", process)
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "TrainerWorker" in " ".join(child.cmdline())
    ]
    assert len(ranks) == 2
    ranks[1].kill()
    error = finish(process)
    assert process.returncode == 1
    assert error.strip().splitlines()[-1].startswith("TrainError: rank "), error
    assert "its process died" in error
    assert "Run the same command again" in error
    run(home, **LONG, output_dir=str(folder), num_workers=2)
    assert (folder / WEIGHTS).read_bytes() == (reference / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("before", "after"), [("single", "fsdp2"), ("fsdp2", "single"), ("ddp", "single")])
def test_the_number_of_ranks_may_change_between_save_and_resume(home, whole, before, after):
    ranks = {"single": 1, "ddp": 2, "fsdp2": 2}
    folder = home / f"{before}-{after}"
    run(
        home,
        **LONG,
        max_steps=15,
        lr_scheduler_type="constant",
        output_dir=str(folder),
        num_workers=ranks[before],
        engine=before,
    )
    run(home, **LONG, lr_scheduler_type="constant", output_dir=str(folder), num_workers=ranks[after], engine=after)
    steady = home / "constant"
    if not steady.exists():
        run(home, **LONG, lr_scheduler_type="constant", output_dir=str(steady))
    assert losses(folder) == pytest.approx(losses(steady), abs=1e-4)


def test_ctrl_c_saves_and_says_how_to_go_on(home, whole):
    folder = home / "stopped"
    process = start_cli(home, **LONG, output_dir=str(folder))
    wait_for(folder / "checkpoint-3", process)
    process.send_signal(signal.SIGINT)
    error = finish(process)
    assert process.returncode == 1
    assert "The same command goes on from there" in error
    assert "Traceback" not in error
    run(home, **LONG, output_dir=str(folder))
    assert (folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


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
