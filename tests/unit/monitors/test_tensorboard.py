from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raytune.monitors.tensorboard import TensorBoardMonitor


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    monitor = TensorBoardMonitor(tmp_path / "runs")
    monitor.log(5, {"current_steps": 5, "total_steps": 10, "loss": 1.5, "lr": 0.001, "percentage": 50.0})
    monitor.log(10, {"current_steps": 10, "total_steps": 10, "loss": 1.0, "lr": 0.0, "percentage": 100.0})
    monitor.log(10, {"current_steps": 10, "total_steps": 10, "eval_loss": 1.25, "eval_accuracy": 0.5})
    monitor.finish()
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    tags: Any = events.Tags()["scalars"]
    series = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    assert series == {
        "train/loss": [(5, 1.5), (10, 1.0)],
        "train/lr": [(5, pytest.approx(0.001)), (10, 0.0)],
        "eval/loss": [(10, 1.25)],
        "eval/accuracy": [(10, 0.5)],
    }
