"""Rewards from the text alone: the exact answer, the last number, a pattern, think tags. Each gives 1 or 0."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

import regex

from raytune.errors import ConfigError
from raytune.rewards.base import Completion, Score, Unscored, as_text

PATTERN_SECONDS = 1.0
"""How long a pattern may search one answer. Python's own `re` cannot be stopped, so this is the regex package."""

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))(?:[eE][-+]?[0-9]+)?")
"""A number as people write it: 42, -7, 1,234.50, .5, 6e23. A minus between two numbers is no sign."""


class AnswerReward:
    """Compares each answer with the right one, which stands in a column of the data.

    Of a row without one it says nothing.

    Args: same: takes the answer's text and the right one; gives whether they agree, or None if the right one is
    unusable. column: where the right answers are.
    """

    def __init__(self, same: Callable[[str, str], bool | None], *, column: str) -> None:
        self._same = same
        self._column = column

    def __call__(self, completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
        truths = columns[self._column]
        return [self._one(as_text(answer), truth) for answer, truth in zip(completions, truths, strict=True)]

    def _one(self, answer: str, truth: object) -> Score:
        if truth is None:
            return None
        agrees = self._same(answer, as_text(truth))
        return Unscored(f"{self._column} {truth!r} cannot be compared with") if agrees is None else float(agrees)


def same_text(answer: str, truth: str) -> bool:
    """Whether the answer is the right one, letter for letter, but for white space around it."""
    return answer.strip() == truth.strip()


def same_number(answer: str, truth: str) -> bool | None:
    """Whether the last number of the answer equals the last number of the right one; None if that has none.

    Example: same_number("4 + 3 = 7.0", "The sum is 7") is True
    """
    expected = last_number(truth)
    return None if expected is None else last_number(answer) == expected


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly, or None.

    Example: last_number("5-3 makes 1,002.50.") == Decimal("1002.50")
    """
    found: list[str] = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        # Its exponent is beyond all that there is.
        return None


class PatternReward:
    """1 where the pattern is found in the answer; ^ and $ are the ends of the answer and a dot is any character."""

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise ConfigError(f"reward_regex is no regular expression: {error}", where=pattern) from None

    def __call__(self, completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
        return [self._one(as_text(answer)) for answer in completions]

    def _one(self, answer: str) -> Score:
        try:
            return float(self._pattern.search(answer, timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            return Unscored(f"reward_regex searched an answer of {len(answer)} characters for {PATTERN_SECONDS:g} s")


def think_format(completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
    """1 for an answer that opens with its only <think> and closes it; what comes after is free."""
    texts = [as_text(answer) for answer in completions]
    return [float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text) for text in texts]
