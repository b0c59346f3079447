"""The monitors of a run, by its `report_to`."""

from pathlib import Path

from raytune.config.output import OutputConfig
from raytune.monitors.base import Entry, Monitor, Monitors
from raytune.monitors.console import ConsoleMonitor
from raytune.monitors.jsonl import JsonlMonitor


def build_monitors(cfg: OutputConfig, folder: Path, *, history: list[Entry], total_steps: int, done: int) -> Monitors:
    """The console and trainer_log.jsonl always; TensorBoard when `report_to` names it.

    Args: history: entries of the run so far, when it resumes. done: steps of the run so far.
    """
    monitors: list[Monitor] = [
        ConsoleMonitor(total_steps=total_steps, done=done, bar=not cfg.disable_tqdm),
        JsonlMonitor(folder / "trainer_log.jsonl", history=history),
    ]
    events = tensorboard_folder(cfg, folder)
    if events is not None:
        # Imported here: a run that does not ask for it should not pay its start-up.
        from raytune.monitors.tensorboard import TensorBoardMonitor

        monitors.append(TensorBoardMonitor(events))
    return Monitors(monitors)


def tensorboard_folder(cfg: OutputConfig, folder: Path) -> Path | None:
    """Where TensorBoard's files go; None where `report_to` does not name it. Args: folder: of the run's output."""
    return Path(cfg.logging_dir or folder / "runs") if "tensorboard" in cfg.report_to else None
