"""Score a batch of answers by several functions, so that what one of them cannot do hurts nobody else."""

import asyncio
import math
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from raytune.rewards.attempt import Attempt, describe
from raytune.rewards.base import Completion, RewardFunction, RewardUnavailable, Score, Unscored, failed
from raytune.rewards.table import RewardTable


def score(
    rewards: Sequence[RewardFunction],
    completions: Sequence[Completion],
    columns: Mapping[str, Sequence[object]],
    *,
    time_limit: float | None = None,
) -> RewardTable:
    """Call each function with the whole batch; where that raises, call it again sample by sample.

    A sample is None for a function that gives None, and NaN for one that raises for it, takes too long, gives NaN or
    infinity, or gives another number of scores than there are answers.

    Functions that are not async run on the calling thread, as some set alarms, one after the other, and no limit can
    stop them here: the caller holds a deadline for its process, of more than twice the time limit for each of them.
    Async ones run together.

    Args: completions: N answers. columns: `prompts`, `completion_ids` and the data's columns, N values each.
    time_limit: seconds for each call of an async function.
    Errors: ValueError if columns and answers differ in number.
    """
    batch = Batch(completions, columns)
    notes = Notes()
    outcomes = {reward.name: _score_now(reward, batch, notes) for reward in rewards if not reward.awaits}
    asked = [reward for reward in rewards if reward.awaits]
    if asked:
        found = _on_the_loop(_score_together(asked, batch, notes, time_limit))
        outcomes |= dict(zip((reward.name for reward in asked), found, strict=True))
    ordered = {reward.name: outcomes[reward.name] for reward in rewards}
    return RewardTable(
        names=tuple(ordered),
        weights=tuple(reward.weight for reward in rewards),
        scores=tuple(tuple(outcome.scores) for outcome in ordered.values()),
        errors={name: outcome.error for name, outcome in ordered.items() if outcome.error is not None},
        seconds={name: outcome.seconds for name, outcome in ordered.items()},
        metrics=notes.means(),
        extra=notes.columns(len(completions)),
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one function made of a batch: scores [N], the first failure if there was one, and the time it took."""

    scores: list[Score]
    error: str | None = None
    seconds: float = 0.0


class Notes:
    """What functions report beside their scores; TRL gives them log_metric and log_extra."""

    def __init__(self) -> None:
        self._metrics: dict[str, list[float]] = {}
        self._extra: dict[str, list[object]] = {}

    def log_metric(self, name: str, value: float) -> None:
        self._metrics.setdefault(_text(name), []).append(float(value))

    def log_extra(self, column: str, values: Iterable[object]) -> None:
        self._extra[_text(column)] = [_plain(value) for value in values]

    def means(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self._metrics.items()}

    def columns(self, count: int) -> dict[str, list[object]]:
        """Only whole columns: a function that was called sample by sample leaves the last sample's."""
        return {name: values for name, values in self._extra.items() if len(values) == count}


def _plain(value: object) -> object:
    """The value as one of JSON's own classes, else as a text: its class may be known to this process alone.

    A member of an enum that is a text or a number is that, a scalar of numpy's that is a float is that.
    """
    match value:
        case None | bool():
            return value
        case int():
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case _:
            return _text(value)


def _text(value: object) -> str:
    """The value as a text of the very class str."""
    return str.__str__(value if isinstance(value, str) else str(value))


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers and their columns."""

    completions: Sequence[Completion]
    columns: Mapping[str, Sequence[object]]

    def __post_init__(self) -> None:
        uneven = {name: len(values) for name, values in self.columns.items() if len(values) != len(self)}
        if uneven:
            raise ValueError(f"{len(self)} answers, but columns of other lengths: {uneven}")

    def __len__(self) -> int:
        return len(self.completions)

    def samples(self) -> list["Batch"]:
        """Each sample as a batch of its own."""
        spans = [slice(i, i + 1) for i in range(len(self))]
        return [Batch(self.completions[i], {name: values[i] for name, values in self.columns.items()}) for i in spans]

    def arguments(self, reward: RewardFunction, notes: Notes) -> dict[str, object]:
        """What a function is called with: all that it accepts."""
        given: dict[str, object] = {"completions": self.completions, **self.columns}
        given |= {"log_metric": notes.log_metric, "log_extra": notes.log_extra}
        return {name: value for name, value in given.items() if reward.accepts is None or name in reward.accepts}


def _score_now(reward: RewardFunction, batch: Batch, notes: Notes) -> Outcome:
    begun = time.monotonic()
    outcome = _try(reward, batch, notes)
    if isinstance(outcome, BaseException):
        parts = [_try(reward, sample, notes) for sample in _apart(outcome, batch)]
        outcome = _gather(parts, outcome, len(batch))
    return Outcome(outcome.scores, outcome.error, time.monotonic() - begun)


def _try(reward: RewardFunction, batch: Batch, notes: Notes) -> Outcome | BaseException:
    with Attempt() as attempt:
        return read_scores(reward.call(**batch.arguments(reward, notes)), len(batch))
    assert attempt.raised is not None
    return attempt.raised


async def _score_together(
    rewards: Sequence[RewardFunction], batch: Batch, notes: Notes, time_limit: float | None
) -> list[Outcome]:
    return await asyncio.gather(*(_score_later(reward, batch, notes, time_limit) for reward in rewards))


async def _score_later(reward: RewardFunction, batch: Batch, notes: Notes, time_limit: float | None) -> Outcome:
    begun = time.monotonic()
    outcome = await _try_later(reward, batch, notes, time_limit)
    if isinstance(outcome, BaseException):
        again = (_try_later(reward, sample, notes, time_limit) for sample in _apart(outcome, batch))
        outcome = _gather(await asyncio.gather(*again), outcome, len(batch))
    return Outcome(outcome.scores, outcome.error, time.monotonic() - begun)


async def _try_later(
    reward: RewardFunction, batch: Batch, notes: Notes, time_limit: float | None
) -> Outcome | BaseException:
    with Attempt() as attempt:
        try:
            async with asyncio.timeout(time_limit):
                values = await reward.call(**batch.arguments(reward, notes))
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"it took longer than {time_limit} s") from error
        return read_scores(values, len(batch))
    assert attempt.raised is not None
    return attempt.raised


def _apart(raised: BaseException, batch: Batch) -> list[Batch]:
    """The samples to try again one by one: none where that would not help."""
    return [] if isinstance(raised, RewardUnavailable) or len(batch) == 1 else batch.samples()


def _gather(parts: Sequence[Outcome | BaseException], raised: BaseException, count: int) -> Outcome:
    """One outcome from those of single samples; without any, nobody is scored."""
    if not parts:
        return _nothing(count, describe(raised))
    outcomes = [_nothing(1, describe(part)) if isinstance(part, BaseException) else part for part in parts]
    troubles = [outcome.error for outcome in outcomes if outcome.error is not None]
    return Outcome([outcome.scores[0] for outcome in outcomes], troubles[0] if troubles else describe(raised))


def read_scores(values: object, count: int) -> Outcome:
    """The scores in what a function gave: `count` numbers, of whatever numeric type, or Nones."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        return _nothing(count, f"it gave {type(values).__name__}, not a list of scores")
    given = list(values)
    if len(given) != count:
        return _nothing(count, f"it gave {len(given)} scores for {count} answers")
    scores = [None if value is None else _finite(value) for value in given]
    troubles = [_why(one) for one, value in zip(given, scores, strict=True) if failed(value)]
    return Outcome(scores, troubles[0] if troubles else None)


def _nothing(count: int, why: str) -> Outcome:
    return Outcome([math.nan] * count, why)


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _why(value: object) -> str:
    return value.why if isinstance(value, Unscored) else f"it gave {value}"


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The process's event loop for async functions: one for ever, so that their sessions stay usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def _on_the_loop(work: Coroutine[Any, Any, list[Outcome]]) -> list[Outcome]:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()
