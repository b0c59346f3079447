"""Rewards from the number of tokens in an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from raytune.errors import ConfigError
from raytune.rewards.base import Completion, Score

TokenIds = Sequence[Sequence[int]]
"""The token ids of each answer."""


@dataclass(frozen=True, slots=True)
class LengthPenalty:
    """Minus the share of the room that the answer takes: 0 when empty, -1 from `max_length` tokens."""

    max_length: int

    def __call__(
        self, completions: Sequence[Completion], completion_ids: TokenIds, **columns: Sequence[object]
    ) -> list[Score]:
        return [-min(len(ids) / self.max_length, 1.0) for ids in completion_ids]


@dataclass(frozen=True, slots=True)
class OverlongPenalty:
    """Soft punishment of answers that come near the limit.

    0 up to `max_length - buffer_length` tokens, then falling on a line to -factor at `max_length`, and no further.
    Source: Yu et al. 2025 (DAPO), eq. 13.
    Errors: ConfigError unless 0 < buffer_length <= max_length.
    """

    max_length: int
    buffer_length: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.buffer_length <= self.max_length:
            raise ConfigError(
                f"the overlong reward has a buffer of {self.buffer_length} tokens in answers of {self.max_length}",
                fix=f"Set overlong_buffer_len between 1 and max_new_tokens ({self.max_length}).",
            )

    def __call__(
        self, completions: Sequence[Completion], completion_ids: TokenIds, **columns: Sequence[object]
    ) -> list[Score]:
        return [self._one(len(ids)) for ids in completion_ids]

    def _one(self, length: int) -> float:
        exceed = length - (self.max_length - self.buffer_length)
        return -min(max(exceed, 0), self.buffer_length) / self.buffer_length * self.factor
