"""Which rows of the files a split takes, in which order: numbers only, no row is copied."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from raytune.errors import DataError

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Extent:
    """The rows of one data set among all rows of the run's files. Example: Extent("identity", start=0, rows=91)"""

    name: str
    start: int
    rows: int
    num_samples: int | None = None


def select(extents: Sequence[Extent], *, max_samples: int | None, seed: int) -> Numbers:
    """Return the rows of the given data sets, one set after another.

    Args: max_samples: take the first so many of each set, after num_samples has drawn from it. seed: of that draw.
    """
    parts = [_drawn(extent, seed)[:max_samples] + extent.start for extent in extents]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _drawn(extent: Extent, seed: int) -> Numbers:
    """All rows in order or, for num_samples, a permutation; where it asks for more than there are, rows repeat."""
    if extent.num_samples is None:
        return np.arange(extent.rows, dtype=np.int64)
    rng = np.random.default_rng([seed, crc32(extent.name.encode())])
    picked = rng.permutation(extent.rows)[: extent.num_samples]
    again = rng.integers(0, extent.rows, size=extent.num_samples - len(picked))
    return np.concatenate([picked, again]).astype(np.int64)


def hold_out(rows: Numbers, val_size: float, *, seed: int, compat: bool) -> tuple[Numbers, Numbers]:
    """Split rows into (train, evaluation) as `datasets.Dataset.train_test_split(test_size, seed=seed)` does.

    The rows that it would choose, but in the order of the files, so that disable_shuffling means what it says and
    reading stays sequential; under compat in its shuffled order too.

    Args: val_size: below 1 a share (rounded up), from 1 a count.
    Raises: DataError when no row would be left to train on.
    """
    count = math.ceil(val_size * len(rows)) if val_size < 1 else int(val_size)
    if count >= len(rows):
        raise DataError(
            f"val_size {val_size:g} holds back {count} of {len(rows)} rows, so none is left to train on",
            fix="Lower val_size, or name an eval_dataset instead.",
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    held, kept = order[:count], order[count:]
    if not compat:
        held, kept = np.sort(held), np.sort(kept)
    return rows[kept], rows[held]
