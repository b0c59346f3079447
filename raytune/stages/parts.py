"""In what supervised stages differ: rows, loss, and what the loss is a mean over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raytune.data.batches import Indices
from raytune.data.store import RowStore
from raytune.engine.base import Loss
from raytune.losses.reduce import LossSums
from raytune.stages import pt, rm, sft
from raytune.types import IGNORE_INDEX

Row = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Parts:
    """Args: loss: builds the loss. rows: stored rows of a micro-batch to rows that the model reads. count: of a global
    batch, what the loss is normalised by. scores: the model has a value head and no use for its logits.
    """

    loss: Callable[..., Loss[LossSums]]
    rows: Callable[[Sequence[Row]], list[Row]]
    count: Callable[[RowStore, Indices], int]
    scores: bool = False


def num_labels(store: RowStore, rows: Indices) -> int:
    """Labelled tokens of a global batch: the first token of a row is never predicted."""
    return sum(int(np.count_nonzero(store.row(int(row))["labels"][1:] != IGNORE_INDEX)) for row in rows)


STAGES: dict[str, Parts] = {
    "sft": Parts(sft.build_loss, list, num_labels),
    "pt": Parts(pt.build_loss, list, num_labels),
    "rm": Parts(rm.build_loss, rm.open_pairs, rm.num_pairs, scores=True),
}
