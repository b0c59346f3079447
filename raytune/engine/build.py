"""Choose an engine by name, and a dtype by the precision keys."""

import torch

from raytune.config.precision import PrecisionConfig
from raytune.engine.base import Engine
from raytune.engine.ddp import DDPEngine
from raytune.engine.fsdp2 import FSDP2Engine

ENGINES: dict[str, type[Engine]] = {"single": Engine, "ddp": DDPEngine, "fsdp2": FSDP2Engine}


def choose_engine(name: str, num_workers: int) -> str:
    """The engine of a run: one rank needs no other than single, and auto is ddp for several."""
    if num_workers == 1:
        return "single"
    return "ddp" if name == "auto" else name


def compute_dtype(cfg: PrecisionConfig) -> torch.dtype:
    """Dtype of frozen weights and of the forward pass."""
    if cfg.bf16 or cfg.pure_bf16:
        return torch.bfloat16
    return torch.float16 if cfg.fp16 else torch.float32


def trainable_dtype(cfg: PrecisionConfig) -> torch.dtype:
    """Dtype of trainable weights and optimizer state: float32 unless everything is bfloat16."""
    return torch.bfloat16 if cfg.pure_bf16 else torch.float32


def autocast_dtype(cfg: PrecisionConfig) -> torch.dtype | None:
    """Dtype the forward pass is cast to, None when the weights have it already."""
    wanted = compute_dtype(cfg)
    return None if wanted is trainable_dtype(cfg) else wanted
