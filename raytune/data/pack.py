"""Several short rows share one long one."""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence

from raytune.errors import DataError
from raytune.types import IGNORE_INDEX, Encoded


def pack_rows(
    rows: Sequence[Encoded], cutoff_len: int, pad_id: int, *, neat: bool = False, compat: bool = False
) -> list[Encoded]:
    """Pack the rows of one block.

    Each packed row restarts its positions with each sample and numbers the samples 1, 2, ... in `attention_mask`, so
    that attention never crosses them; it is as long as its samples. No token can predict the first of a sample, so
    that one has no label.

    Args: cutoff_len: tokens a packed row may have. compat: LLaMA-Factory's rows: one token less, padded to
        cutoff_len with pad_id, and numbered only if `neat`, else all 1 (attention crosses the samples).
    Raises: DataError for a row that is longer than a packed one may be.
    """
    capacity = cutoff_len - 1 if compat else cutoff_len
    lengths = [len(row.input_ids) for row in rows]
    too_long = next((number for number, length in enumerate(lengths) if length > capacity), None)
    if too_long is not None:
        raise DataError(
            f"row {too_long} of the block has {lengths[too_long]} tokens, a packed row holds {capacity}",
            fix="Encode with the same cutoff_len as you pack with.",
        )
    places: defaultdict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        places[length].append(number)
    packs = ([rows[places[length].pop()] for length in group] for group in fill_knapsacks(lengths, capacity))
    return [_join_padded(pack, cutoff_len, pad_id, neat) if compat else _join(pack) for pack in packs]


def fill_knapsacks(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Group lengths so that no group sums to more than `capacity`: take the longest that still fits, again and again.

    Example: fill_knapsacks([10, 20, 30, 40, 50], 60) == [[50, 10], [40, 20], [30]]
    """
    left: list[int] = []
    for length in lengths:
        insort(left, length)
    groups: list[list[int]] = []
    while left:
        group: list[int] = []
        room = capacity
        while (place := bisect_right(left, room)) > 0:
            group.append(left.pop(place - 1))
            room -= group[-1]
        if not group:
            raise ValueError(f"a length of {left[0]} does not fit into {capacity}")
        groups.append(group)
    return groups


def _join(pack: Sequence[Encoded]) -> Encoded:
    joined = Encoded([], [])
    for number, row in enumerate(pack, start=1):
        length = len(row.input_ids)
        joined.input_ids.extend(row.input_ids)
        joined.labels.extend([IGNORE_INDEX, *row.labels[1:]] if length else [])
        joined.position_ids.extend(range(length))
        joined.attention_mask.extend([number] * length)
    return joined


def _join_padded(pack: Sequence[Encoded], cutoff_len: int, pad_id: int, neat: bool) -> Encoded:
    joined = _join(pack)
    padding = cutoff_len - len(joined.input_ids)
    return Encoded(
        joined.input_ids + [pad_id] * padding,
        [label for row in pack for label in row.labels] + [IGNORE_INDEX] * padding,
        joined.position_ids + [0] * padding,
        joined.attention_mask + [0] * padding if neat else [1] * cutoff_len,
    )
