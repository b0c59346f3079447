"""What a reward function takes and gives."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune.errors import RaytuneError

Completion = str | Sequence[Mapping[str, Any]]
"""An answer: its text, or the messages that the policy and its tools wrote, as [{"role": ..., "content": ...}]."""

Score = float | None
"""What a function gives a sample. None: it has nothing to say of it, the other functions do. NaN: it should have scored
it and could not, so that the sample has no reward."""


def failed(score: Score) -> bool:
    """Whether a function should have scored the sample and could not."""
    return score is not None and math.isnan(score)


class RewardUnavailable(RaytuneError):
    """What scores cannot be reached or started at all: asking again sample by sample would not help."""


class Unscored(float):
    """A NaN that says why.

    Example: Unscored("the solution is no number").why == "the solution is no number"
    """

    why: str

    def __new__(cls, why: str) -> "Unscored":
        score = super().__new__(cls, "nan")
        score.why = why
        return score

    def __reduce__(self) -> tuple[object, ...]:
        return (Unscored, (self.why,))


# Made by raytune.rewards.load, read by raytune.rewards.score.
@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A reward function that was checked, and how it is called.

    `accepts` are the columns that it names, None if it takes any. `awaits` marks an async function.

    Example: RewardFunction("short", lambda completions, **_: [-len(c) for c in completions], weight=0.1)
    """

    name: str
    call: Callable[..., Any]
    weight: float = 1.0
    accepts: frozenset[str] | None = None
    awaits: bool = False


def as_text(value: object) -> str:
    """The text of an answer or of a column's value.

    A conversation counts by its last message from the assistant, of several content parts the texts are joined, and
    anything else is written as str does. Raises TypeError for a message that is no mapping with a content.
    """
    match value:
        case str():
            return value
        case list() | tuple():
            return _last_words(value)
        case _:
            return str(value)


def _last_words(messages: Sequence[object]) -> str:
    """What the assistant said last; a message without a role is the assistant's."""
    for message in reversed(messages):
        if not isinstance(message, Mapping) or "content" not in message:
            raise TypeError(f"a completion is a text or a list of messages with a content, not a list with {message!r}")
        if message.get("role", "assistant") == "assistant":
            return content_text(message["content"])
    return ""


def content_text(content: object) -> str:
    """A message's text; null (a bare tool call) is empty."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise TypeError(f"the content of a message is a text or a list of parts, not {content!r}")
    parts = [part for part in content if isinstance(part, Mapping)]
    return "".join(str(part.get("text", "")) for part in parts)
