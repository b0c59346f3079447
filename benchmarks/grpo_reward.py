"""The reward of both programs: needs no model and no right answer, differs between answers, and likes long ones."""

from collections.abc import Sequence
from typing import Any

ENOUGH = 64


def different_words(completions: Sequence[Any], **columns: object) -> list[float]:
    """Different words of each answer, as a share of 64. An answer is a text, or messages of a conversation."""
    return [len(set(_text(answer).lower().split())) / ENOUGH for answer in completions]


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else " ".join(message["content"] for message in answer)
