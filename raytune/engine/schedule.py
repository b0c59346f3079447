"""Learning-rate schedules."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from raytune.config.optim import OptimConfig

# Stable share of a warmup-stable-decay run when the config does not say (LLaMA-Factory's default).
_STABLE_SHARE = 1 / 3


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
