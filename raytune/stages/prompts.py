"""Which prompt a run draws next: a function of (seed, number) alone, so that an integer is all there is to resume."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raytune.config.train import TrainConfig
from raytune.data.batches import Indices, epoch_order
from raytune.errors import DataError
from raytune.stages.answerable import PromptRows
from raytune.stages.samples import Prompt

HELD_OUT = 1 << 40
"""Prompts of validation are numbered from here, so that they are never taken for prompts of training."""


# Stored in checkpoints by the loop.
@dataclass(frozen=True, slots=True)
class PromptCursor:
    """Where a run stands among its prompts: `next` was never drawn, `again` were drawn but are to be drawn once more.

    Example: PromptCursor(128, again=(120, 126))
    """

    next: int = 0
    again: tuple[int, ...] = ()


class PromptSource:
    """Prompts of a prepared set, each epoch in the order in which supervised training would visit its rows.

    Dynamic sampling draws on for the groups that it filters out: those prompts are of the same stream, so an epoch
    shows each row once, whatever is filtered.

    Args: limit: prompts in all; None draws for ever, epoch after epoch. shuffle: False keeps the set's order.

    Example: source = PromptSource(RowStore.open(prepared.train), seed=42); source.draw(8)
    """

    def __init__(
        self,
        store: PromptRows,
        *,
        seed: int,
        limit: int | None = None,
        shuffle: bool = True,
        cursor: PromptCursor = PromptCursor(),
    ) -> None:
        if not len(store):
            raise DataError("the prompt set is empty", where=str(store.path), fix="Name a dataset that has rows.")
        self._store = store
        self._limit = limit
        self._next = cursor.next
        self._again = sorted(cursor.again)
        self._order = _Orders(store, seed=seed, shuffle=shuffle)

    @property
    def cursor(self) -> PromptCursor:
        """What a source must be given to go on from here."""
        return PromptCursor(self._next, tuple(self._again))

    @property
    def left(self) -> int | None:
        """Prompts that can still be drawn; None if they have no end."""
        return None if self._limit is None else max(self._limit - self._next, 0) + len(self._again)

    @property
    def epoch(self) -> float:
        """Passes over the set that were drawn so far."""
        return self._next / len(self._store)

    def draw(self, count: int) -> list[Prompt]:
        """The next `count` prompts, those given back first; fewer at the end of the stream, none after it."""
        numbers, self._again = self._again[:count], self._again[count:]
        wanted = count - len(numbers)
        fresh = wanted if self._limit is None else min(wanted, max(self._limit - self._next, 0))
        numbers = [*numbers, *range(self._next, self._next + fresh)]
        self._next += fresh
        return [self._prompt(number) for number in numbers]

    def give_back(self, numbers: Iterable[int]) -> None:
        """Have prompts drawn again, as their answers will not be used: in flight at a checkpoint, too old, lost."""
        returned = set(numbers)
        unknown = sorted(number for number in returned if not 0 <= number < self._next)
        if unknown:
            raise ValueError(f"prompt {unknown[0]} was never drawn (the next is {self._next})")
        self._again = sorted({*self._again, *returned})

    def since(self, cursor: PromptCursor) -> set[int]:
        """Numbers that were drawn after the source stood at `cursor`, or are to be drawn again."""
        return {*cursor.again, *range(cursor.next, self._next)}

    def go_back(self, cursor: PromptCursor, *, kept: Collection[int]) -> None:
        """Have all prompts that were drawn since `cursor` drawn again, but for those in `kept`."""
        again = self.since(cursor) - set(kept)
        # The end of the stream is simply not drawn yet.
        while self._next - 1 in again:
            self._next -= 1
            again.remove(self._next)
        self._again = sorted(again)

    def row(self, number: int) -> int:
        """The row of the set that prompt `number` shows."""
        epoch, index = divmod(number, len(self._store))
        return int(self._order(epoch)[index])

    def _prompt(self, number: int) -> Prompt:
        return read_prompt(self._store, number, self.row(number))


class _Orders:
    """The order of each epoch; the last two are kept, for a batch may lie across their border."""

    def __init__(self, store: PromptRows, *, seed: int, shuffle: bool) -> None:
        self._lengths = store.lengths
        self._seed = seed
        self._shuffle = shuffle
        self._cached = lru_cache(maxsize=2)(self._make)

    def __call__(self, epoch: int) -> Indices:
        return self._cached(epoch)

    def _make(self, epoch: int) -> Indices:
        return epoch_order(self._lengths, epoch=epoch, seed=self._seed, shuffle=self._shuffle)


def read_prompt(store: PromptRows, number: int, row: int) -> Prompt:
    """Row `row` of a set as prompt `number`; its ids are a copy, which outlives the file's map."""
    return Prompt(number, row, np.array(store.row(row)["input_ids"], dtype=np.int32), store.columns(row))


def held_out_prompts(store: PromptRows, *, limit: int | None = None) -> list[Prompt]:
    """The prompts of a validation set in its order, at most `limit`; each evaluation asks the same under the same
    numbers, so that it draws the same seeds."""
    rows = range(len(store) if limit is None else min(limit, len(store)))
    return [read_prompt(store, HELD_OUT + row, row) for row in rows]


def prompt_limit(cfg: TrainConfig, num_rows: int) -> int | None:
    """Prompts that a run draws: num_train_epochs over the set, or no end where max_steps ends the run."""
    return None if cfg.max_steps > 0 else math.ceil(cfg.num_train_epochs * num_rows)


def planned_steps(cfg: TrainConfig, num_rows: int, prompts_per_step: int) -> int:
    """Steps of a run of which no group is filtered out; with dynamic sampling epochs may end it earlier."""
    limit = prompt_limit(cfg, num_rows)
    return cfg.max_steps if limit is None else math.ceil(limit / prompts_per_step)
