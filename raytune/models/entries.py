"""Names, dtypes and shapes of tensors that travel. Light: its readers import no transformers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


# Made by Published, sent to rollout actors as lists of plain values.
@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as it travels.

    Args: dtype: torch's name of it.

    Example: Entry("model.norm.weight", "bfloat16", (576,))
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.torch_dtype.itemsize


TORCH_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
}


def buckets_of(sizes: Sequence[int], bucket_bytes: int) -> list[range]:
    """Cut a sequence of sizes into runs of at most `bucket_bytes`; one that is larger is a run of its own."""
    runs: list[range] = []
    start = total = 0
    for place, size in enumerate(sizes):
        if place > start and total + size > bucket_bytes:
            runs.append(range(start, place))
            start, total = place, 0
        total += size
    return [*runs, range(start, len(sizes))] if sizes else []
