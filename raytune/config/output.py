"""What a run writes, where and how often."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from raytune.config.base import Group, NotBuilt, When, no_is_a_word, none_is_empty

Monitor = Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio", "comet_ml", "clearml", "neptune", "dvclive"]
LATER_MONITORS = ("wandb", "swanlab", "mlflow", "trackio", "comet_ml", "clearml", "neptune", "dvclive")


class OutputConfig(Group):
    output_dir: str | None = None
    """Folder of checkpoints, logs and the result; training needs one."""
    overwrite_output_dir: bool = False
    """Start anew in a folder that holds another run, instead of resuming it."""
    run_name: str | None = None
    """Name of the run in monitors; null is output_dir."""
    report_to: Annotated[tuple[Monitor, ...], BeforeValidator(none_is_empty), NotBuilt(LATER_MONITORS)] = (
        "tensorboard",
    )
    """Monitors that get the metrics; none is nobody. trainer_log.jsonl is written always."""
    logging_dir: str | None = None
    """Folder of TensorBoard's files; null is output_dir/runs."""
    logging_strategy: When = "steps"
    """When to log."""
    logging_steps: float = Field(10, gt=0)
    """Optimizer steps between two logs; below 1 a share of all steps."""
    save_strategy: Annotated[
        Literal["no", "steps", "epoch", "best"], BeforeValidator(no_is_a_word), NotBuilt(("best",))
    ] = "steps"
    """When to write a checkpoint."""
    save_steps: float = Field(500, gt=0)
    """Optimizer steps between two checkpoints; below 1 a share of all steps."""
    save_total_limit: int | None = Field(None, ge=1)
    """Checkpoints to keep; the best and the last are never removed."""
    save_only_model: bool = False
    """Leave optimizer, scheduler and random states out of checkpoints; they cannot be resumed then."""
    resume_from_checkpoint: bool | str | None = None
    """Checkpoint to go on from: a path, true or auto for the last one, false for none; null is auto."""
    ignore_data_skip: Annotated[bool, NotBuilt()] = False
    """Resume at the start of the data."""
    plot_loss: bool = False
    """Draw training_loss.png at the end."""
    disable_tqdm: bool = False
    """Show no progress bar."""
    log_level: Literal["passive", "debug", "info", "warning", "error", "critical"] = "passive"
    """How much the run says; passive is info."""
