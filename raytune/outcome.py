"""What a finished run leaves in its folder: weights, results, curves and a card.

checkpoint or ranks -> weights -> results -> state -> picture -> card
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from raytune.config.load import dump
from raytune.config.run import RunConfig
from raytune.engine.checkpoint import CheckpointStore
from raytune.engine.output import publish_weights, write_results
from raytune.log import get_logger
from raytune.monitors.base import Entry
from raytune.monitors.model_card import write_model_card
from raytune.stages.state import TrainState

log = get_logger(__name__)


class Saves(Protocol):
    """Ranks that hold the weights."""

    def save(self, folder: Path, *, with_state: bool) -> None: ...


def publish(cfg: RunConfig, folder: Path, ranks: Saves, checkpoints: CheckpointStore, state: TrainState) -> None:
    """Put the finished weights into the output folder: those of the best checkpoint, of the last, or of the ranks."""
    step = state.best_step if cfg.evaluation.load_best_model_at_end and state.best_step else state.step
    if step in checkpoints.steps():
        if step != state.step:
            log.info("the best model is that of step %s (%s)", step, state.best_metric)
        publish_weights(checkpoints.path(step), folder)
        return
    staged = checkpoints.stage(step)
    ranks.save(staged, with_state=False)
    publish_weights(staged, folder)
    checkpoints.sweep_staging()


def conclude(
    cfg: RunConfig,
    folder: Path,
    state: TrainState,
    *,
    epoch: float,
    plot: Callable[[list[Entry], Path], object],
    picture: str,
) -> dict[str, Entry]:
    """Write all that a run says of itself at its end; returns the results. Args: plot: draws the log to a file."""
    results = _results(state, epoch=epoch)
    write_results(folder, results)
    state.save(folder)
    if cfg.output.plot_loss:
        plot(state.log_history, folder / picture)
    _card(cfg, folder, results)
    return results


def _results(state: TrainState, *, epoch: float) -> dict[str, Entry]:
    results = {"train": _train_results(state, epoch=epoch)}
    evaluations = [entry for entry in state.log_history if "eval_runtime" in entry]
    if evaluations:
        results["eval"] = {key: value for key, value in evaluations[-1].items() if key.startswith(("eval_", "epoch"))}
    return results


def _train_results(state: TrainState, *, epoch: float) -> Entry:
    seconds = max(state.elapsed, 1e-9)
    return {
        "epoch": round(epoch, 4),
        "train_loss": state.loss_sum / max(state.step, 1),
        "train_runtime": round(state.elapsed, 4),
        "train_samples_per_second": round(state.num_rows / seconds, 3),
        "train_steps_per_second": round(state.step / seconds, 3),
        "train_tokens_per_second": round(state.num_tokens / seconds, 3),
        "num_input_tokens_seen": state.num_tokens,
    }


def _card(cfg: RunConfig, folder: Path, results: dict[str, Entry]) -> None:
    keys = ("learning_rate", "num_train_epochs", "cutoff_len", "global_batch_size", "lora_rank", "seed")
    flat = dump(cfg)
    write_model_card(
        folder,
        base_model=cfg.model.model_name_or_path,
        method=cfg.adapter.finetuning_type,
        stage=cfg.train.stage,
        datasets=list(cfg.data.dataset),
        settings={key: flat[key] for key in keys if key in flat},
        results={key: value for part in results.values() for key, value in part.items()},
    )
