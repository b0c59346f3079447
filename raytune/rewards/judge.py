"""A language model as the judge, over an OpenAI-compatible endpoint."""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from raytune.errors import ConfigError
from raytune.rewards.base import Completion, RewardUnavailable, Score, Unscored, as_text, content_text
from raytune.rewards.http import ask, checked_url

AT_ONCE = 16
"""Requests in flight."""

DEFAULT_PROMPT = """\
You judge how well an answer does what was asked.

What was asked:
{prompt}

The answer:
{completion}

Think it over in a few sentences. Then end with a line "Score: N", N from 0 (useless) to 1 (perfect)."""

SLOT = re.compile(r"\{(\w+)\}")
OWN_SLOTS = ("prompt", "completion")
"""Slots that are no columns."""


class JudgeReward:
    """Asks a model to score each answer and reads the number from its reply.

    The prompt's slots {prompt} and {completion} take the conversation and the answer, any other {name} takes the
    column of that name. A brace that is no such slot stays as it is, so does a column's name between spaces, { name }.
    The score is the pattern's first group in its last match. A reply without one is a failure.

    Args: url: base of the API (https://host/v1) or the whole address of chat/completions. seconds: deadline for a
    batch, repetitions included.
    Errors: ConfigError for a URL that is none, or a pattern without exactly one group.
    """

    def __init__(
        self, *, url: str, model: str, prompt: str, score_pattern: str, seconds: float, api_key: str | None = None
    ) -> None:
        base = checked_url(url, key="judge_url").rstrip("/")
        self._url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._model = model
        self._prompt = prompt
        self._columns = {"prompts", *SLOT.findall(prompt)}
        self._pattern = compile_pattern(score_pattern)
        self._seconds = seconds
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def __call__(self, completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
        """Raises RewardUnavailable if the judge refuses, or answers nothing at all before the deadline."""
        deadline, room = time.monotonic() + self._seconds, asyncio.Semaphore(AT_ONCE)
        told = {name: columns[name] for name in self._columns if name in columns}
        rows = [{name: values[i] for name, values in told.items()} for i in range(len(completions))]
        prompts = [fill(self._prompt, as_text(answer), row) for answer, row in zip(completions, rows, strict=True)]
        async with httpx.AsyncClient() as client:
            asked = [self._one(client, room, prompt, deadline) for prompt in prompts]
            found = await asyncio.gather(*asked, return_exceptions=True)
        return [_score_or_raise(one, found) for one in found]

    async def _one(self, client: httpx.AsyncClient, room: asyncio.Semaphore, prompt: str, deadline: float) -> Score:
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        async with room:
            reply = await ask(client, self._url, body, deadline=deadline, headers=self._headers)
        text = said(reply)
        numbers = self._pattern.findall(text)
        return _number(numbers[-1]) if numbers else Unscored(f"the judge gave no score: {text[-100:]!r}")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Raises ConfigError unless it is a regular expression with one group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"judge_score_regex is no regular expression: {error}", where=pattern) from None
    if compiled.groups != 1:
        raise ConfigError(
            f"judge_score_regex has {compiled.groups} groups",
            where=pattern,
            fix="Put the number, and nothing else, in parentheses.",
        )
    return compiled


def fill(template: str, answer: str, row: Mapping[str, object]) -> str:
    """The template with its slots filled; what is filled in is not searched for slots again."""
    values = {name: _told(value) for name, value in row.items()}
    values |= {"completion": answer, "prompt": _told(row.get("prompts", ""))}
    return SLOT.sub(lambda slot: values.get(slot[1], slot[0]), template)


def _told(value: object) -> str:
    """A column's value for a reader: a conversation with the names of who speaks."""
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        return "\n".join(f"{message.get('role', '')}: {content_text(message.get('content'))}" for message in value)
    return str(value)


def said(reply: Any) -> str:
    """The text of a chat completion. Raises RewardUnavailable if it has another form."""
    match reply:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {"content": None}}, *_]}:
            return ""
    raise RewardUnavailable(f"the judge's reply is no chat completion: {str(reply)[:200]}")


def _number(text: str) -> Score:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return Unscored(f"the judge's score {text!r} is no number")


def _score_or_raise(one: Score | BaseException, found: Sequence[Score | BaseException]) -> Score:
    """A sample that could not be asked about has no score, unless that befell all of them."""
    if not isinstance(one, BaseException):
        return one
    if not isinstance(one, RewardUnavailable) or all(isinstance(other, BaseException) for other in found):
        raise one
    return Unscored(str(one))
