"""The event loop of a replica's environments: apart from the engine's, and replaced when one of them blocks it."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from raytune.rewards.attempt import Attempt, describe
from raytune.stages.environment import Environment, Reply, Unanswered
from raytune.stages.samples import Ids, Prompt

T = TypeVar("T")
_TICK = 0.2


class Environments:
    """Makes the environments of a replica, all in one event loop.

    While one blocks it the others wait, and do not lose time of theirs by it. When it has stood still for `time_limit`
    seconds, or has ended, its conversations are over and later ones have another: what blocks for good, or leaves by
    sys.exit in a task of its own, costs the answers that were under way.

    Args: time_limit: seconds for each reset and step, from when it begins.
    """

    def __init__(self, kind: Callable[[], Environment], time_limit: float) -> None:
        self._kind, self._limit = kind, time_limit
        self._home = _Home()

    def new(self) -> "Apart":
        """An environment for one answer; it is made by its reset."""
        if self._home.silent() > self._limit:
            self._home.stop()
            self._home = _Home()
        return Apart(self._kind, self._home, self._limit)


class Apart:
    """An environment that is made and asked in a loop of another thread. Errors: Unanswered."""

    def __init__(self, kind: Callable[[], Environment], home: "_Home", time_limit: float) -> None:
        self._kind, self._home, self._limit = kind, home, time_limit

    async def reset(self, prompt: Prompt) -> None:
        """As Environment; makes it too."""
        await self._there(self._begin(prompt))

    async def _begin(self, prompt: Prompt) -> None:
        self._own = self._kind()
        await self._own.reset(prompt)

    async def step(self, text: str, ids: Ids) -> Reply:
        """As Environment."""
        return await self._there(self._own.step(text, ids))

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        given = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._contained(work), self._home.loop))
        try:
            while not (await asyncio.wait({given}, timeout=_TICK))[0]:
                if self._home.silent() > self._limit:
                    raise Unanswered(f"was lost: an environment ended their loop, or blocked it for {self._limit:g} s")
        finally:
            given.cancel()
        found = given.result()
        if isinstance(found, Unanswered):
            raise found
        return found

    async def _contained(self, work: Coroutine[Any, Any, T]) -> T | Unanswered:
        """Keep what would end the loop that it is raised in, or whoever waits for it in another."""
        self._home.mark()
        clock = asyncio.timeout(self._limit)
        try:
            async with clock:
                return await work
        except TimeoutError as raised:
            over = f"took longer than {self._limit:g} s"
            return Unanswered(over if clock.expired() else f"raised {describe(raised)}")
        except (SystemExit, KeyboardInterrupt, asyncio.CancelledError) as raised:
            return Unanswered(f"raised {describe(raised)}")
        finally:
            self._home.mark()


class _Home:
    """A loop in a thread, and when it last did something."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._marked = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="environments", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self.loop.call_soon(self._tick)
        with Attempt():
            self.loop.run_forever()

    def _tick(self) -> None:
        self.mark()
        self.loop.call_later(_TICK, self._tick)

    def mark(self) -> None:
        """It is alive: beside the ticks, which wait while many steps that block follow one another."""
        self._marked = time.monotonic()

    def silent(self) -> float:
        """Seconds that it has stood still."""
        return time.monotonic() - self._marked if self._thread.is_alive() else math.inf

    def stop(self) -> None:
        """End it as soon as it moves again."""
        self.loop.call_soon_threadsafe(self.loop.stop)
