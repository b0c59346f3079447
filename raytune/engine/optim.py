"""Optimizers by the names that Hugging Face configs use."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from raytune.config.optim import OptimConfig
from raytune.errors import ConfigError

ParamGroups = list[dict[str, Any]]


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> Optimizer:
    """Build the optimizer over the trainable parameters of `model`.

    Matrices decay, vectors (biases, norms) do not. Raises ConfigError for an `optim` that torch has not.
    """
    groups = decay_groups(model.named_parameters(), weight_decay=cfg.weight_decay)
    return OPTIMIZERS[cfg.optim](groups, cfg)


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float) -> ParamGroups:
    """Split trainable parameters into those with and those without weight decay; empty groups are left out."""
    trainable = [param for _, param in named if param.requires_grad]
    matrices = [param for param in trainable if param.ndim >= 2]
    vectors = [param for param in trainable if param.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def group_settings(optimizer: Optimizer) -> ParamGroups:
    """What the config says about each parameter group; the learning rate of the moment is state."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]


def _extra(cfg: OptimConfig) -> dict[str, Any]:
    """Parse `optim_args` ("key=value, key=value"), as Hugging Face does."""
    if not cfg.optim_args:
        return {}
    pairs = [part.split("=", 1) for part in cfg.optim_args.replace(" ", "").split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError(f"optim_args is {cfg.optim_args!r}", fix="Write it as key=value, key=value.")
    return {key: _number(value) for key, value in pairs}


def _number(text: str) -> float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"optim_args has the value {text!r}", fix="Use a number, true or false.") from None


def _adamw(groups: ParamGroups, cfg: OptimConfig, *, fused: bool) -> Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=cfg.learning_rate,
        betas=(cfg.adam_beta1, cfg.adam_beta2),
        eps=cfg.adam_epsilon,
        fused=fused,
        **_extra(cfg),
    )


OPTIMIZERS: dict[str, Callable[[ParamGroups, OptimConfig], Optimizer]] = {
    "adamw_torch": lambda groups, cfg: _adamw(groups, cfg, fused=False),
    "adamw_torch_fused": lambda groups, cfg: _adamw(groups, cfg, fused=True),
    "sgd": lambda groups, cfg: torch.optim.SGD(groups, lr=cfg.learning_rate, **_extra(cfg)),
    "adagrad": lambda groups, cfg: torch.optim.Adagrad(groups, lr=cfg.learning_rate, **_extra(cfg)),
    "rmsprop": lambda groups, cfg: torch.optim.RMSprop(groups, lr=cfg.learning_rate, **_extra(cfg)),
    "adafactor": lambda groups, cfg: torch.optim.Adafactor(groups, lr=cfg.learning_rate, **_extra(cfg)),
}
