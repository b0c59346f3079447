"""A head that gives each token one number: what a critic expects of the answer, or what a reward model thinks of it.

hidden states behind the last norm -> one linear layer -> [N] numbers

It is a child of the model, so that engines wrap, train and checkpoint it with the rest, and it is written to a file of
its own beside the weights, by the names that LLaMA-Factory and TRL give it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raytune.errors import ModelError
from raytune.models.folder import VALUE_HEAD

CHILD = "v_head"
FILE = VALUE_HEAD
_WEIGHT, _BIAS = f"{CHILD}.summary.weight", f"{CHILD}.summary.bias"


class ValueHead(nn.Module):
    """One linear layer in float32.

    Args: width: of the hidden states. std: spread of its first weights; 0 for a critic that expects nothing.
    """

    def __init__(self, width: int, *, std: float) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.normal_(self.summary.weight, std=std) if std else nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, D], of any float type, to numbers [N]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.summary(hidden.to(self.summary.weight.dtype))[..., 0]


def attach_value_head(model: Any, source: Path | None, *, critic: bool) -> ValueHead:
    """Give `model` (transformers or peft) a value head that trains: that of the folder `source`, or a new one.

    A new head of a critic says 0. That of a reward model is drawn from torch's random state: seed it before.
    Source: Stiennon et al. 2020, appendix B.1, for the spread 1 / sqrt(D + 1).
    """
    width = int(model.config.get_text_config().hidden_size)
    head = ValueHead(width, std=0.0 if critic else 1.0 / math.sqrt(width + 1))
    if source is not None and (source / FILE).is_file():
        load_value_head(head, source)
    model.add_module(CHILD, head)
    return head


def value_head_of(model: nn.Module) -> ValueHead | None:
    """The value head of a model, if it has one."""
    head = dict(model.named_children()).get(CHILD)
    return head if isinstance(head, ValueHead) else None


def load_value_head(head: ValueHead, folder: Path) -> None:
    """Read a head that `save_value_head`, LLaMA-Factory or TRL wrote. Raises: ModelError."""
    try:
        weights = load_file(folder / FILE)
        weight, bias = weights[_WEIGHT], weights[_BIAS]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"the value head in {folder / FILE} cannot be read: {error}",
            fix="Name the output folder of a run with stage: rm.",
        ) from None
    if weight.shape != head.summary.weight.shape:
        raise ModelError(
            f"the value head in {folder} is for hidden states of size {weight.shape[-1]}, the model's have "
            f"{head.summary.weight.shape[-1]}",
            fix="Name the base model that the reward model was trained on.",
        )
    with torch.no_grad():
        head.summary.weight.copy_(weight)
        head.summary.bias.copy_(bias)


def save_value_head(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the head's part of a model's weights into `folder`, whole or not at all. Args: weights: by `is_head`."""
    temporary = folder / f".{FILE}"
    save_file({name: value.contiguous() for name, value in weights.items()}, temporary)
    temporary.replace(folder / FILE)


def is_head(name: str) -> bool:
    """Whether a parameter of that name belongs to a value head."""
    return name.startswith(f"{CHILD}.")
