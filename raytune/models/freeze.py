"""Partial fine-tuning: a few layers and named modules train, the rest is frozen."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from raytune.config.adapter import AdapterConfig
from raytune.errors import ModelError


def freeze_but_layers(model: Any, cfg: AdapterConfig) -> None:
    """Mark what trains: the last n (or first -n) layers, or some modules of them, and extra modules outside of them.

    Raises: ModelError when a named module is not there, or nothing would train.
    """
    prefix, layers = decoder_layers(model)
    count = cfg.freeze_trainable_layers
    chosen = list(layers)[-count:] if count > 0 else list(layers)[:-count]
    model.requires_grad_(False)
    for layer in chosen:
        for module in _inside(layer, cfg.freeze_trainable_modules):
            module.requires_grad_(True)
    for module in _outside(model, prefix, cfg.freeze_extra_modules):
        module.requires_grad_(True)
    if not any(param.requires_grad for param in model.parameters()):
        raise ModelError(
            "finetuning_type: freeze leaves nothing to train",
            fix="Set freeze_trainable_layers to a number other than 0, or name freeze_extra_modules.",
        )


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """Return name and list of a transformers model's decoder layers: the list as long as its config says."""
    number = model.config.get_text_config().num_hidden_layers
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    if not found:
        raise ModelError(f"this {model.config.model_type} model has no list of {number} layers; freeze cannot be used")
    return max(found, key=lambda pair: sum(param.numel() for param in pair[1].parameters()))


def _inside(layer: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Modules of one layer that end in one of `names`; the layer itself for `all`."""
    if "all" in names:
        return [layer]
    there = [(name, module) for name, module in layer.named_modules() if name]
    return _pick(there, names, "freeze_trainable_modules")


def _outside(model: nn.Module, prefix: str, names: Sequence[str]) -> list[nn.Module]:
    """Modules with weights that are neither a layer nor around the layers: embeddings, last norm, head."""
    there = [
        (name, module)
        for name, module in model.named_modules()
        if name and not f"{prefix}.".startswith(f"{name}.") and not name.startswith(f"{prefix}.")
        if any(True for _ in module.parameters())
    ]
    return [module for _, module in there] if "all" in names else _pick(there, names, "freeze_extra_modules")


def _pick(there: Sequence[tuple[str, nn.Module]], names: Sequence[str], key: str) -> list[nn.Module]:
    picked: list[nn.Module] = []
    for wanted in names:
        matches = [module for name, module in there if name == wanted or name.endswith(f".{wanted}")]
        if not matches:
            raise ModelError(
                f"{key}: there is no module '{wanted}'", fix=f"There are: {', '.join(n for n, _ in there)}."
            )
        picked += matches
    return picked
