"""Learning-rate schedules."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from raytune.config.optim import OptimConfig

# Stable share of a warmup-stable-decay run when the config does not say (LLaMA-Factory's default).
_STABLE_SHARE = 1 / 3
# Learning rates that schedules were made with, by their names in torch's and transformers' states.
_RATES_OF_THE_CONFIG = ("base_lrs", "_init_lrs")


def warmup_steps(cfg: OptimConfig, total_steps: int) -> int:
    """Steps of warm-up: `warmup_steps` when set (a value below 1 is a share), else `warmup_ratio` of the run."""
    if 0 < cfg.warmup_steps < 1:
        return math.ceil(cfg.warmup_steps * total_steps)
    return int(cfg.warmup_steps) or math.ceil(cfg.warmup_ratio * total_steps)


def build_schedule(optimizer: Optimizer, cfg: OptimConfig, *, total_steps: int) -> LRScheduler:
    """Build the schedule named by `lr_scheduler_type` over `total_steps` optimizer steps."""
    warmup = warmup_steps(cfg, total_steps)
    extra = dict(cfg.lr_scheduler_kwargs or {})
    if cfg.lr_scheduler_type == "warmup_stable_decay" and not extra:
        stable = math.ceil((total_steps - warmup) * _STABLE_SHARE)
        extra = {"num_decay_steps": total_steps - warmup - stable}
    return get_scheduler(
        cfg.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=extra or None,
    )


def resume_schedule(schedule: LRScheduler, state: dict[str, Any], *, before: float, now: float) -> None:
    """Put the saved `state` into a schedule that was built from today's config, and set the rate of the next step.

    A rate that is a function of the step is that of today's function: the run may have got another learning_rate, or
    more epochs. One that follows a metric is state, and is scaled as the learning rate was.
    Args: before, now: `learning_rate` when the state was saved, and today.
    """
    schedule.load_state_dict({key: value for key, value in state.items() if key not in _RATES_OF_THE_CONFIG})
    groups = schedule.optimizer.param_groups
    if isinstance(schedule, LambdaLR):
        for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
    elif before != now:
        for group in groups:
            group["lr"] = group["lr"] * now / before if before else now
