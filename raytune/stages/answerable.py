"""The rows of a prompt set that leave room for an answer."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raytune.data.batches import Indices
from raytune.errors import DataError
from raytune.log import get_logger

log = get_logger(__name__)
_SHOWN = 5


class PromptRows(Protocol):
    """Prompts by row; a RowStore is one.

    lengths: [R] tokens of each. row: columns of tokens, `input_ids` among them. columns: what is beside the tokens.
    """

    path: Path

    @property
    def lengths(self) -> Indices: ...
    def __len__(self) -> int: ...
    def row(self, index: int) -> dict[str, Any]: ...
    def columns(self, index: int) -> dict[str, Any]: ...


class SomeRows:
    """Some rows of a set, numbered anew from 0. Example: SomeRows(store, np.array([0, 2]))"""

    def __init__(self, whole: PromptRows, rows: Indices) -> None:
        self.path, self.lengths = whole.path, whole.lengths[rows]
        self._whole, self._rows = whole, rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        return self._whole.row(int(self._rows[index]))

    def columns(self, index: int) -> dict[str, Any]:
        return self._whole.columns(int(self._rows[index]))


def answerable(rows: PromptRows, *, window: int) -> PromptRows:
    """The rows whose prompt leaves room for a token at least; how many do not is said aloud.

    Args: window: most tokens of prompt and answer together.
    Errors: DataError if no row is left.
    """
    short = rows.lengths < window
    if short.all():
        return rows
    left_out = np.flatnonzero(~short)
    shown = ", ".join(str(row) for row in left_out[:_SHOWN]) + (", ..." if len(left_out) > _SHOWN else "")
    if not short.any():
        raise DataError(
            f"no prompt leaves room for an answer: the shortest has {int(rows.lengths.min())} tokens, the engines take "
            f"{window} with the answer",
            where=str(rows.path),
            fix="Raise vllm_maxlen (or take a model with more positions), or use shorter prompts.",
        )
    log.warning(
        "%s of %s prompts are left out: with %s tokens or more they leave no room for an answer (rows %s)",
        len(left_out),
        len(rows),
        window,
        shown,
    )
    return SomeRows(rows, np.flatnonzero(short))
