"""Rewards from a server: LLaMA-Factory's reward API, and the asking that it shares with the judge."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from raytune.errors import ConfigError
from raytune.rewards.base import Completion, RewardUnavailable, Score

FIRST_PAUSE = 0.5
"""Seconds before the first repetition; each further one waits twice as long, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 10.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses of a server that may answer when it is asked again."""

FORM = 'It is asked POST {"model": ..., "messages": [text, ...]} and answers {"scores": [number, ...]}.'


class HttpReward:
    """Asks a server in LLaMA-Factory's form: POST {"model", "messages"} -> {"scores"}, a number a message.

    A message is prompt and answer as one text, as the policy's tokens read. For answers that are conversations the
    caller gives these texts as a column `texts`, special tokens included.

    Args: url: where to post, path and all. seconds: deadline for a batch, repetitions included.
    Errors: ConfigError for a URL that is none.
    """

    def __init__(self, url: str, *, seconds: float) -> None:
        self._url = checked_url(url, key="reward_model")
        self._seconds = seconds

    async def __call__(self, completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
        """Raises RewardUnavailable if the server cannot be reached in time, refuses, or gives no scores."""
        body = {"model": "model", "messages": full_texts(completions, columns)}
        async with httpx.AsyncClient() as client:
            reply = await ask(client, self._url, body, deadline=time.monotonic() + self._seconds)
        return scores_in(reply, len(completions), self._url)


def checked_url(url: str, *, key: str) -> str:
    """The URL as it is. Raises ConfigError unless it is one of http or https."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{key} is no URL: {error}", where=f"{key}: {url}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(
            f"{key} is no URL of a server", where=f"{key}: {url}", fix="It begins with http:// or https://."
        )
    return url


def full_texts(completions: Sequence[Completion], columns: Mapping[str, Sequence[object]]) -> list[str]:
    """Prompt and answer as one text each. Raises TypeError if they are conversations without a column `texts`."""
    if "texts" in columns:
        return [str(text) for text in columns["texts"]]
    return [_joined(prompt, answer) for prompt, answer in zip(columns["prompts"], completions, strict=True)]


def _joined(prompt: object, answer: Completion) -> str:
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise TypeError("a reward server scores texts: conversations need a column 'texts' with prompt and answer")
    return prompt + answer


def scores_in(reply: object, count: int, url: str) -> list[Score]:
    """The scores of a reply. Raises RewardUnavailable if they are not `count` numbers (or nulls)."""
    scores = reply.get("scores") if isinstance(reply, Mapping) else None
    if not isinstance(scores, list):
        raise RewardUnavailable(f"the reward server gave no list of scores: {_short(reply)}", where=url, fix=FORM)
    if len(scores) != count:
        raise RewardUnavailable(f"the reward server gave {len(scores)} scores for {count} texts", where=url, fix=FORM)
    wrong = [score for score in scores if not (score is None or isinstance(score, int | float))]
    if wrong:
        raise RewardUnavailable(f"the reward server gave {wrong[0]!r} for a score", where=url, fix=FORM)
    return scores


async def ask(
    client: httpx.AsyncClient,
    url: str,
    body: Mapping[str, Any],
    *,
    deadline: float,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """POST JSON and give the JSON that comes back; repeat with growing pauses while the trouble may pass.

    Args: deadline: of time.monotonic(), for everything.
    Errors: RewardUnavailable with the last trouble: no connection, a status that says no, a reply that is no JSON.
    """
    pause, begun = FIRST_PAUSE, time.monotonic()
    while True:
        trouble = await _once(client, url, body, headers or {}, deadline)
        if isinstance(trouble, Reply):
            return trouble.content
        if time.monotonic() + pause >= deadline:
            waited = time.monotonic() - begun
            raise RewardUnavailable(
                f"the server gave no scores within {waited:.1f} s: {trouble}",
                where=url,
                fix="See that it runs and can be reached from the workers, or raise reward_time_limit.",
            )
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said, parsed."""

    content: Any


async def _once(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], headers: Mapping[str, str], deadline: float
) -> Reply | str:
    """One request: its reply, or what went wrong if that may pass. Raises RewardUnavailable for what will not."""
    left = max(deadline - time.monotonic(), 0.001)
    try:
        async with asyncio.timeout(left):
            response = await client.post(url, json=body, headers=headers, timeout=left)
    except (httpx.RequestError, TimeoutError) as error:
        return f"{type(error).__name__} {error}".strip()
    status = f"HTTP {response.status_code} {_short(response.text)}".strip()
    if response.status_code in PASSING:
        return status
    if not response.is_success:
        raise RewardUnavailable(f"the server refuses to score: {status}", where=url, fix="See the address and the key.")
    try:
        return Reply(response.json())
    except ValueError:
        raise RewardUnavailable(f"the server's reply is no JSON: {_short(response.text)}", where=url) from None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
