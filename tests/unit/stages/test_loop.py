from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raytune.config.evaluation import EvalConfig
from raytune.config.output import OutputConfig
from raytune.data.batches import Position
from raytune.engine.checkpoint import CheckpointStore
from raytune.monitors.base import Entry
from raytune.stages.interfaces import EvalResult, StepResult
from raytune.stages.loop import Loop, LoopPlan
from raytune.stages.state import TrainState, load_state

NUM_ROWS, BATCH = 10, 4  # three steps an epoch: 4, 4, 2 rows


@dataclass
class FakeTrainer:
    """A trainer whose loss is its step number, and whose evaluations are given."""

    eval_losses: list[float] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)

    def train_step(self, step: int, position: Position) -> StepResult:
        self.positions.append(position)
        rows = min(BATCH, NUM_ROWS - position.offset)
        return StepResult(float(step), rows, rows * 10, rows * 5, grad_norm=1.0, learning_rate=0.1)

    def evaluate(self, name: str) -> EvalResult:
        return EvalResult(self.eval_losses.pop(0), 0.5, 3, 30)

    def metric_step(self, metric: float) -> None:
        self.metrics.append(metric)

    def save(self, folder: Path, *, with_state: bool) -> None:
        (folder / "weights").write_text(f"{len(self.positions)} {with_state}")


@dataclass
class FakeMonitor:
    entries: list[dict[str, float | int]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def log(self, step: int, entry: dict[str, float | int]) -> None:
        self.entries.append(entry)

    def advance(self, step: int) -> None:
        self.steps.append(step)

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        raise AssertionError("supervised training does not go back")

    def finish(self) -> None:
        pass


def make_loop(
    folder: Path,
    trainer: FakeTrainer,
    *,
    epochs: int = 2,
    state: TrainState | None = None,
    stop_at: int | None = None,
    eval_names: tuple[str, ...] = (),
    output: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Loop:
    state = state or TrainState()
    return Loop(
        LoopPlan(NUM_ROWS, BATCH, 3 * epochs, eval_names),
        OutputConfig.model_validate({"logging_steps": 2, "save_steps": 2, **(output or {})}),
        EvalConfig(**(evaluation or {})),
        trainer=trainer,
        monitor=FakeMonitor(),
        checkpoints=CheckpointStore(folder),
        state=state,
        interrupted=lambda: state.step == stop_at,
    )


def entries(loop: Loop) -> list[dict[str, float | int]]:
    assert isinstance(loop.monitor, FakeMonitor)
    return loop.monitor.entries


def test_visits_every_row_of_every_epoch_once(tmp_path):
    trainer = FakeTrainer()
    assert make_loop(tmp_path, trainer).run()
    assert [(p.epoch, p.offset) for p in trainer.positions] == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4), (1, 8)]


def test_logs_the_mean_loss_since_the_last_log(tmp_path):
    loop = make_loop(tmp_path, FakeTrainer())
    loop.run()
    logged = [(e["current_steps"], e["loss"], e["epoch"], e["total_tokens"]) for e in entries(loop)]
    assert logged == [(2, 1.5, 0.8, 80), (4, 3.5, 1.4, 140), (6, 5.5, 2.0, 200)]
    assert {"lr", "percentage", "elapsed_time", "remaining_time", "throughput"} <= set(entries(loop)[0])


def test_saves_on_schedule_and_at_the_end(tmp_path):
    make_loop(tmp_path, FakeTrainer(), output={"save_steps": 4}).run()
    assert CheckpointStore(tmp_path).steps() == [4, 6]


def test_saves_at_epochs_ends(tmp_path):
    make_loop(tmp_path, FakeTrainer(), output={"save_strategy": "epoch"}).run()
    assert CheckpointStore(tmp_path).steps() == [3, 6]


def test_keeps_the_newest_checkpoints(tmp_path):
    make_loop(tmp_path, FakeTrainer(), output={"save_steps": 1, "save_total_limit": 2}).run()
    assert CheckpointStore(tmp_path).steps() == [5, 6]


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(tmp_path, stop_at):
    whole = FakeTrainer()
    reference = make_loop(tmp_path / "whole", whole)
    reference.run()

    first = FakeTrainer()
    assert not make_loop(tmp_path / "cut", first, stop_at=stop_at).run()
    latest = CheckpointStore(tmp_path / "cut").latest()
    assert latest is not None
    second = FakeTrainer()
    resumed = make_loop(tmp_path / "cut", second, state=load_state(latest))
    assert resumed.run()
    assert first.positions + second.positions == whole.positions
    timeless = [
        {k: v for k, v in e.items() if "time" not in k and k != "throughput"} for e in resumed.state.log_history
    ]
    expected = [
        {k: v for k, v in e.items() if "time" not in k and k != "throughput"} for e in reference.state.log_history
    ]
    assert timeless == expected


def test_stops_early_when_evaluations_no_longer_improve(tmp_path):
    trainer = FakeTrainer(eval_losses=[3.0, 2.0, 2.5, 2.1, 0.0, 0.0])
    loop = make_loop(
        tmp_path,
        trainer,
        eval_names=("",),
        evaluation={
            "eval_strategy": "steps",
            "eval_steps": 1,
            "early_stopping_steps": 2,
            "load_best_model_at_end": True,
        },
    )
    assert loop.run()
    assert (loop.state.step, loop.state.best_step, loop.state.best_metric) == (4, 2, 2.0)
    assert trainer.metrics == [3.0, 2.0, 2.5, 2.1]
    assert 2 in CheckpointStore(tmp_path).steps()


def test_the_best_checkpoint_survives_the_limit(tmp_path):
    trainer = FakeTrainer(eval_losses=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    loop = make_loop(
        tmp_path,
        trainer,
        eval_names=("",),
        output={"save_steps": 1, "save_total_limit": 2},
        evaluation={"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True},
    )
    loop.run()
    assert CheckpointStore(tmp_path).steps() == [1, 6]


def test_greater_is_better_for_accuracy(tmp_path):
    trainer = FakeTrainer(eval_losses=[1.0, 2.0])
    loop = make_loop(
        tmp_path,
        trainer,
        eval_names=("",),
        evaluation={"eval_strategy": "epoch", "metric_for_best_model": "eval_accuracy"},
    )
    loop.run()
    assert (loop.state.best_metric, loop.state.stale_evals) == (0.5, 1)


def test_several_evaluation_sets_are_logged_by_name_and_judged_by_their_mean(tmp_path):
    trainer = FakeTrainer(eval_losses=[1.0, 2.0] * 3)
    loop = make_loop(tmp_path, trainer, eval_names=("a", "b"), evaluation={"eval_strategy": "epoch"})
    loop.run()
    entry = next(e for e in entries(loop) if "eval_loss" in e)
    assert (entry["eval_a_loss"], entry["eval_b_loss"], entry["eval_loss"]) == (1.0, 2.0, 1.5)


def test_evaluates_at_the_end_when_no_strategy_did(tmp_path):
    loop = make_loop(tmp_path, FakeTrainer(eval_losses=[1.0]), eval_names=("",))
    loop.run()
    assert entries(loop)[-1]["eval_loss"] == 1.0
