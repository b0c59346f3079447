"""Conversations with more than one turn: after each answer an environment may add tokens and let the policy go on.

prompt -> draw -> environment -> its tokens, masked -> draw -> ... -> one Completion, append-only
What was drawn is never decoded and encoded again: an environment's text is encoded alone and put behind it.
"""

import asyncio
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from raytune.errors import ConfigError
from raytune.rewards.attempt import Attempt, describe
from raytune.stages.samples import Completion, Finish, Ids, Prompt, VersionSpan

T = TypeVar("T")


# Made by an Environment, read by `converse`.
@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment says to an answer: text or token ids to put behind it, and whether that was all.

    Example: Reply("<result>5</result>") or Reply(done=True)
    """

    text: str = ""
    ids: Sequence[int] = ()
    done: bool = False


class Environment(Protocol):
    """One conversation; a new object is made for each answer. Its text must bring its own chat markup.

    All conversations of a replica are in one event loop, so what blocks (no await) keeps the others waiting.
    """

    async def reset(self, prompt: Prompt) -> None:
        """Begin with a prompt."""
        ...

    async def step(self, text: str, ids: Ids) -> Reply:
        """Look at what the policy drew since the last reply: its text, and its token ids [T] int32."""
        ...


class Unanswered(Exception):
    """An environment that was asked gave no answer. Its text goes on from "its step ..."."""


Draw = Callable[[Sequence[int], int], Awaitable[Completion]]
"""(all ids so far, most new tokens) -> one answer's next part, its version spans counted from its own start."""


@dataclass(slots=True)
class Transcript:
    """An answer in the making: lists of equal length T."""

    ids: list[int]
    logprobs: list[float]
    mask: list[bool]
    versions: list[VersionSpan]

    def add_drawn(self, part: Completion) -> None:
        start = len(self.ids)
        self.ids += part.ids.tolist()
        self.logprobs += part.logprobs.tolist()
        self.mask += [True] * len(part.ids)
        self.versions += [VersionSpan(one.version, start + one.start, start + one.end) for one in part.versions]

    def add_given(self, ids: Sequence[int]) -> None:
        """Tokens that nobody drew have log-prob 0, no version and no part in the loss."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.mask += [False] * len(ids)

    def completion(self, finish: Finish, failure: str = "") -> Completion:
        return Completion(
            ids=np.array(self.ids, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            mask=np.array(self.mask, np.bool_),
            versions=merged(self.versions),
            finish=finish,
            failure=failure,
        )


async def converse(
    environment: Environment,
    prompt: Prompt,
    first: Completion,
    draw: Draw,
    *,
    budget: int,
    max_turns: int,
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
    vocabulary: int,
    time_limit: float | None = None,
) -> Completion:
    """One answer of several turns that begins with `first`.

    It ends when the environment says so ("environment"), and with "length" after `max_turns` draws, or when `budget`
    tokens are used up or would be by the environment's words; so it always ends with a token that was drawn, unless
    the environment or the clock ends it. An environment that raises or replies with something else than text or ids
    below `vocabulary` ends its own answer alone ("failed"), as does one whose turns and their draws together take
    longer than `time_limit` seconds.
    """
    transcript, part, turns = Transcript([], [], [], []), first, 0
    clock = asyncio.timeout(time_limit)
    try:
        async with clock:
            while True:
                turns += 1
                transcript.add_drawn(part)
                if turns == 1:
                    begun = await _asked("reset", environment.reset(prompt))
                    if isinstance(begun, _Failure):
                        return transcript.completion("failed", begun.why)
                if part.finish == "length":
                    return transcript.completion("length")
                reply = await _asked("step", environment.step(decode(part.ids.tolist()), part.ids))
                if isinstance(reply, _Failure):
                    return transcript.completion("failed", reply.why)
                given = _tokens(reply, encode, vocabulary)
                if isinstance(given, _Failure):
                    return transcript.completion("failed", given.why)
                left = budget - len(transcript.ids) - len(given)
                if left < (0 if reply.done else 1) or (turns == max_turns and not reply.done):
                    return transcript.completion("length")
                transcript.add_given(given)
                if reply.done:
                    return transcript.completion("environment")
                part = await draw([*prompt.ids.tolist(), *transcript.ids], left)
    except TimeoutError:
        if not clock.expired():
            raise
        return transcript.completion("failed", "its turns took too long for rollout_timeout")


@dataclass(frozen=True, slots=True)
class _Failure:
    why: str


async def _asked(verb: str, work: Awaitable[T]) -> T | _Failure:
    """What a verb of an environment gives, or why it gives nothing."""
    with Attempt() as attempt:
        return await work
    raised = attempt.raised
    return _Failure(f"its {verb} {raised if isinstance(raised, Unanswered) else f'raised {describe(raised)}'}")


def _tokens(reply: Reply, encode: Callable[[str], list[int]], vocabulary: int) -> list[int] | _Failure:
    """The ids that a reply stands for, or why it stands for none; people's classes hold what they like."""
    if not isinstance(reply, Reply):
        return _Failure(f"its step gave {type(reply).__name__}, not a Reply")
    if not isinstance(reply.text, str):
        return _Failure(f"its step gave a Reply whose text is {type(reply.text).__name__}, not str")
    if not isinstance(reply.done, bool | np.bool_):
        return _Failure(f"its step gave a Reply whose done is {type(reply.done).__name__}, not bool")
    with Attempt() as attempt:
        ids = list(reply.ids)
        strange = [one for one in ids if not isinstance(one, int | np.integer) or not 0 <= one < vocabulary]
        if strange:
            return _Failure(f"its step gave a Reply with the id {strange[0]!r:.40}, not an int below {vocabulary}")
        return [int(one) for one in ids] or encode(reply.text)
    return _Failure(f"its step gave a Reply that is no tokens: {describe(attempt.raised)}")


def merged(spans: Sequence[VersionSpan]) -> tuple[VersionSpan, ...]:
    """Neighbours of the same version become one."""
    out: list[VersionSpan] = []
    for span in spans:
        if out and out[-1].version == span.version and out[-1].end == span.start:
            out[-1] = VersionSpan(span.version, out[-1].start, span.end)
        else:
            out.append(span)
    return tuple(out)


def load_environment(spec: str) -> Callable[[], Environment]:
    """The class of "package.module:Class" or "folder/file.py:Class"; calling it makes one conversation.

    Errors: ConfigError if it is not there, or has no async reset and step.
    """
    place, colon, name = spec.rpartition(":")
    if not colon:
        raise ConfigError(f"no environment '{spec}'", fix="Write package.module:Class or folder/file.py:Class.")
    found: Any = vars(_module(place, spec)).get(name)
    if not inspect.isclass(found):
        raise ConfigError(f"there is no class '{name}' in {place}", where=spec, fix="Name the environment's class.")
    missing = [verb for verb in ("reset", "step") if not _is_async_method(found, verb)]
    if missing:
        raise ConfigError(
            f"the environment '{spec}' has no async method {' and none '.join(missing)}",
            fix="It needs async reset(prompt) and async step(text, ids) -> Reply.",
        )
    return cast(Callable[[], Environment], found)


def check_environment(spec: str) -> None:
    """Make one conversation. Errors: as load_environment; ConfigError where that raises."""
    kind = load_environment(spec)

    async def make() -> Environment:
        return kind()

    with Attempt() as attempt:
        # In a loop, where conversations are made.
        asyncio.run(make())
    if attempt.raised is not None:
        raise ConfigError(
            f"the environment '{spec}' cannot be made: {describe(attempt.raised)}",
            fix="A new one is made for each answer, without arguments.",
        )


def _is_async_method(kind: type[Any], verb: str) -> bool:
    return any(inspect.iscoroutinefunction(vars(base).get(verb)) for base in kind.__mro__)


def _module(place: str, spec: str) -> ModuleType:
    with Attempt() as attempt:
        return _file_module(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    raise ConfigError(
        f"the environment '{spec}' cannot be imported: {describe(attempt.raised)}",
        fix="It must be importable on every node.",
    )


def _file_module(path: Path) -> ModuleType:
    full = path.expanduser().resolve()
    spec = importlib.util.spec_from_file_location(f"environment_file_{full.stem}", full)
    if spec is None or spec.loader is None or not full.is_file():
        raise FileNotFoundError(f"there is no file {full}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
