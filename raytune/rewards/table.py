"""What a batch of answers was given."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raytune.rewards.base import Score, failed


# Made by raytune.rewards.score on a reward actor, read by the stage and the log.
@dataclass(frozen=True, slots=True)
class RewardTable:
    """Scores of N samples by each of F functions; None where a function had nothing to say, NaN where it failed.

    scores: [F][N]. errors: the first failure of each function that had one. seconds: what each took.
    metrics, extra: what functions reported through TRL's log_metric (averaged) and log_extra (columns [N]).

    Example: RewardTable(("right", "short"), (1.0, 0.5), ((1.0, None), (-0.2, -0.4))).combined == (0.9, -0.2)
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    scores: tuple[tuple[Score, ...], ...]
    errors: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Sequence[object]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return len(self.scores[0]) if self.scores else 0

    @property
    def combined(self) -> tuple[float, ...]:
        """The reward of each sample: weights times scores, summed over the functions that gave one.

        NaN where one of them failed, for a part of the sum says nothing, and where none gave a score. Functions of
        weight 0 are only watched: neither their scores nor their failures count.
        """
        return tuple(self._combine(row) for row in zip(*self.scores, strict=True))

    def first(self, count: int) -> "RewardTable":
        """The scores of the first `count` samples; what is not told sample by sample stays that of all."""
        if count == self.num_samples:
            return self
        scores = tuple(column[:count] for column in self.scores)
        return replace(self, scores=scores, extra={name: values[:count] for name, values in self.extra.items()})

    def _combine(self, row: Sequence[Score]) -> float:
        given = zip(self.weights, row, strict=True)
        parts = [weight * score for weight, score in given if weight and score is not None]
        return math.fsum(parts) if parts else math.nan

    @property
    def means(self) -> dict[str, float]:
        """Mean of each function over what it scored, NaN if nothing."""
        return {name: mean(column) for name, column in zip(self.names, self.scores, strict=True)}

    @property
    def failures(self) -> dict[str, int]:
        """How many samples each function failed to score."""
        return {name: sum(map(failed, column)) for name, column in zip(self.names, self.scores, strict=True)}


def mean(scores: Iterable[Score]) -> float:
    known = [score for score in scores if score is not None and not failed(score)]
    return math.fsum(known) / len(known) if known else math.nan


def unscorable(weights: Mapping[str, float], num_samples: int, why: str) -> RewardTable:
    """The table of samples that were never scored, because the actor that had them died or took too long.

    Args: weights: of the functions that would have scored them, by name.
    """
    return RewardTable(
        names=tuple(weights),
        weights=tuple(weights.values()),
        scores=((math.nan,) * num_samples,) * len(weights),
        errors=dict.fromkeys(weights, why),
    )


def join(tables: Sequence[RewardTable]) -> RewardTable:
    """One table of the parts of a batch, in their order. Raises ValueError if other functions made one of them."""
    first = tables[0]
    if any((table.names, table.weights) != (first.names, first.weights) for table in tables):
        raise ValueError("tables of different reward functions cannot be joined")
    common = set.intersection(*(set(table.extra) for table in tables))
    return RewardTable(
        names=first.names,
        weights=first.weights,
        scores=tuple(sum(parts, ()) for parts in zip(*(table.scores for table in tables), strict=True)),
        errors={name: error for table in reversed(tables) for name, error in table.errors.items()},
        seconds={name: max(table.seconds.get(name, 0.0) for table in tables) for name in first.names},
        metrics=_join_metrics(tables),
        extra={name: [value for table in tables for value in table.extra[name]] for name in sorted(common)},
    )


def _join_metrics(tables: Sequence[RewardTable]) -> dict[str, float]:
    """Means of means, each part counting by its samples."""
    names = {name: None for table in tables for name in table.metrics}
    found = {name: [table for table in tables if name in table.metrics] for name in names}
    totals = {name: math.fsum(part.metrics[name] * part.num_samples for part in found[name]) for name in names}
    return {name: total / sum(part.num_samples for part in found[name]) for name, total in totals.items()}
