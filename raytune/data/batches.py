"""Which rows an optimizer step takes, and how they are cut into micro-batches over the ranks.

Everything here is a pure function of (lengths, seed, position): every rank computes the same plan from its own copy of
the row store, nothing is sent, and a resumed run sees the batch that would have come.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raytune.config.train import TrainConfig

Indices = npt.NDArray[np.int64]

_LENGTH_GROUP = 50
"""How many global batches `group_by_length` sorts together (the window Hugging Face's sampler uses)."""


# Made by raytune.stages.loop, stored in checkpoints, read by every rank.
@dataclass(frozen=True, slots=True)
class Position:
    """Where training stands in the data: `offset` rows of `epoch` are done.

    Example: Position(epoch=1, offset=64)
    """

    epoch: int = 0
    offset: int = 0

    def advance(self, num_taken: int, num_rows: int) -> "Position":
        """Return the position after `num_taken` more of `num_rows` rows; an exhausted epoch starts the next."""
        offset = self.offset + num_taken
        return Position(self.epoch + 1, 0) if offset >= num_rows else Position(self.epoch, offset)


def rows_per_step(cfg: TrainConfig, num_ranks: int) -> int:
    """Rows of one optimizer step over all ranks."""
    if cfg.global_batch_size is not None:
        return cfg.global_batch_size
    return cfg.per_device_train_batch_size * cfg.gradient_accumulation_steps * num_ranks


def num_steps(num_rows: int, batch_rows: int, *, epochs: float, start: Position = Position()) -> int:
    """Optimizer steps from `start` to the end of `epochs` epochs of `num_rows` rows, `batch_rows` a step.

    An epoch's last batch may be smaller. A fractional epoch count rounds up to a whole step.
    """
    per_epoch = math.ceil(num_rows / batch_rows)
    left_in_epoch = math.ceil((num_rows - start.offset) / batch_rows)
    later_epochs = math.ceil(epochs * per_epoch) - (start.epoch + 1) * per_epoch
    return max(left_in_epoch + later_epochs, 0)


def epoch_order(lengths: Indices, *, epoch: int, seed: int, shuffle: bool, group_rows: int | None = None) -> Indices:
    """The order in which an epoch visits the rows.

    Args: lengths: tokens per row [R]. shuffle: False keeps data set order. group_rows: rows per global batch when
    batches of similar lengths are wanted (`group_by_length`), else None.
    Returns: a permutation of range(R), the same for the same arguments on every machine.
    """
    if not shuffle:
        return np.arange(len(lengths), dtype=np.int64)
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = rng.permutation(len(lengths)).astype(np.int64)
    if group_rows is None:
        return order
    window = group_rows * _LENGTH_GROUP
    grouped = [part[np.argsort(-lengths[part], kind="stable")] for part in _chunks(order, window)]
    batches = [batch for part in grouped for batch in _chunks(part, group_rows)]
    # Batches of one window would otherwise come from long to short; the last, smaller batch stays last.
    full, rest = [b for b in batches if len(b) == group_rows], [b for b in batches if len(b) < group_rows]
    shuffled = [full[i] for i in rng.permutation(len(full))]
    return np.concatenate(shuffled + rest)


def split_batch(
    rows: Indices, lengths: Indices, *, num_ranks: int, micro_rows: int, max_tokens: int | None = None
) -> list[list[Indices]]:
    """Cut one global batch into micro-batches and deal them to the ranks.

    Rows of similar length share a micro-batch, so little is padded; micro-batches are dealt from the costliest on, back
    and forth over the ranks, so that all ranks work about as long. The loss does not depend on the cut, because it is
    normalised over the whole global batch.

    Args: rows: row numbers [B]. lengths: tokens of every row of the data set. micro_rows: rows per micro-batch.
    max_tokens: padded tokens per micro-batch; replaces `micro_rows` when given (a longer row stands alone).
    Returns: for each rank its micro-batches; all ranks have equally many, some of which may be empty (collective
    operations of sharded models must match).
    """
    by_length = rows[np.argsort(-lengths[rows], kind="stable")]
    if max_tokens is None:
        micro = _chunks(by_length, _even_rows(len(rows), num_ranks, micro_rows))
    else:
        micro = _token_chunks(by_length, lengths, max_tokens)
    ranks: list[list[Indices]] = [[] for _ in range(num_ranks)]
    for start in range(0, len(micro), num_ranks):
        deal = micro[start : start + num_ranks]
        order = range(num_ranks) if (start // num_ranks) % 2 == 0 else range(num_ranks - 1, -1, -1)
        for rank, part in zip(order, deal, strict=False):
            ranks[rank].append(part)
    depth = max(len(parts) for parts in ranks)
    empty = np.empty(0, dtype=np.int64)
    return [parts + [empty] * (depth - len(parts)) for parts in ranks]


def _even_rows(num_rows: int, num_ranks: int, micro_rows: int) -> int:
    """Rows per micro-batch, at most `micro_rows`, so that a short last batch still gives every rank its share."""
    return max(1, min(micro_rows, math.ceil(num_rows / num_ranks)))


def _chunks(rows: Indices, size: int) -> list[Indices]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _token_chunks(by_length: Indices, lengths: Indices, max_tokens: int) -> list[Indices]:
    # Rows come longest first, so the first row of a chunk is its padded width.
    chunks: list[Indices] = []
    start = 0
    while start < len(by_length):
        width = max(int(lengths[by_length[start]]), 1)
        size = max(max_tokens // width, 1)
        chunks.append(by_length[start : start + size])
        start += size
    return chunks
