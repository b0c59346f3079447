"""What a rollout engine is told of a model's weights: names, dtypes and shapes of its checkpoint, and the tensors.

pieces of the model -> names of the checkpoint (experts apart again) -> entries, known beforehand -> tensors
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from raytune.errors import ModelError
from raytune.models.entries import Entry
from raytune.models.merged import Piece, pieces


class Published:
    """The weights of one model as rollout engines name them; build it once, read it after each step.

    Args: model: full, freeze or peft LoRA, sharded or whole. dtype: that floating-point weights travel in; None keeps
    their own.
    Raises: ModelError for adapters that cannot be merged, and weights that have no name in the model's checkpoint.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._pieces = [(piece, self._named(piece)) for piece in pieces(model)]
        self._check_names()

    @property
    def entries(self) -> list[Entry]:
        """All tensors in the order in which they come; nothing is gathered for it."""
        return [entry for _, entries in self._pieces for entry in entries]

    def tensors(self, *, keep: bool = True) -> Iterator[tuple[Entry, Tensor]]:
        """Yield whole tensors in the order of `entries`, but in the dtype they train in: the reader casts as it copies.

        Collective for a sharded model: every rank exhausts it; those with `keep` False get nothing.
        """
        for piece, entries in self._pieces:
            with torch.no_grad():
                value = piece.whole(keep=keep)
            if value is None:
                continue
            parts = {piece.name: value} if _is_plain(piece, entries) else self._convert({piece.name: value})
            yield from ((entry, parts[entry.name]) for entry in entries)

    def _named(self, piece: Piece) -> list[Entry]:
        """Names and shapes in the checkpoint; several for experts that the model holds in one tensor."""
        dtype = self._dtype if piece.cast and self._dtype is not None else piece.weight.dtype
        shadow = torch.empty(piece.weight.shape, dtype=dtype, device="meta")
        parts = self._convert({piece.name: shadow})
        return [Entry(name, str(part.dtype).removeprefix("torch."), tuple(part.shape)) for name, part in parts.items()]

    def _convert(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return revert_weight_conversion(self._base, weights)

    def _check_names(self) -> None:
        """Converting piece by piece must give what converting the whole model gives."""
        shadows = {p.name: torch.empty(p.weight.shape, dtype=p.weight.dtype, device="meta") for p, _ in self._pieces}
        differing = {entry.name for entry in self.entries} ^ set(self._convert(shadows))
        if differing:
            raise ModelError(
                f"{min(differing)} of this {self._base.config.model_type} model cannot be named one weight at a time",
                fix="Its checkpoint joins weights that the model keeps apart; rollouts cannot be refreshed from it.",
            )


def _is_plain(piece: Piece, entries: Sequence[Entry]) -> bool:
    return len(entries) == 1 and entries[0].name == piece.name and entries[0].shape == tuple(piece.weight.shape)
