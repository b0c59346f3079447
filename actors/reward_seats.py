"""The workers of a reward desk: who is free, and a new one in the place of each that died or hangs."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raytune.errors import RaytuneError, RewardError
from raytune.log import get_logger

log = get_logger(__name__)

START_DEADLINE = 300.0
"""Seconds for a worker's process, its libraries and the functions of the user."""
_FAILED_STARTS = 3


@dataclass(slots=True, eq=False)
class Seat:
    """A worker's place. `state` is starting, free, busy or gone (given up)."""

    number: int
    place: dict[str, Any]
    actor: Any = None
    state: str = "starting"
    num_done: int = 0


class Seats:
    """All places of a desk; lives in its event loop.

    Args: kind: remote class of the workers. made_of: its arguments. places: Ray's options of each. wait: seconds that a
    caller of `take` waits for a free one.
    """

    def __init__(self, kind: Any, made_of: Sequence[Any], places: Sequence[dict[str, Any]], *, wait: float) -> None:
        self._kind, self._made_of, self._wait = kind, made_of, wait
        self._seats = [Seat(number, place) for number, place in enumerate(places)]
        self._changed = asyncio.Condition()
        self._failure: RewardError | None = None
        self._revivals: set[asyncio.Task[None]] = set()

    @property
    def num_alive(self) -> int:
        return sum(seat.state != "gone" for seat in self._seats)

    async def start(self) -> dict[str, float]:
        """Start all workers. Returns what one says of its functions. Errors: the first that a worker meets."""
        for seat in self._seats:
            self._sit(seat)
        try:
            return (await asyncio.gather(*(self._load(seat) for seat in self._seats)))[0]
        except (RayError, TimeoutError) as error:
            raise _cause(error) from None

    def _sit(self, seat: Seat) -> None:
        seat.state = "starting"
        seat.actor = self._kind.options(**seat.place).remote(*self._made_of)

    async def _load(self, seat: Seat) -> dict[str, float]:
        weights = await asyncio.wait_for(seat.actor.load.remote(), START_DEADLINE)
        await self._set(seat, "free")
        return weights

    async def take(self, tried: Collection[int]) -> Seat:
        """A free worker that is not among `tried`, the one with the least done; any if all that live have tried.

        Errors: RewardError if none is free in time or none is left.
        """
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._failure or self._free(tried)), self._wait)
            except TimeoutError:
                fix = "Start more reward workers."
                raise RewardError(f"no reward worker was free within {self._wait:g} s", fix=fix) from None
            if self._failure is not None:
                raise self._failure
            seat = min(self._free(tried), key=lambda one: one.num_done)
            seat.state = "busy"
            return seat

    def _free(self, tried: Collection[int]) -> list[Seat]:
        alive = [seat for seat in self._seats if seat.state != "gone"]
        others = [seat for seat in alive if seat.number not in tried] or alive
        return [seat for seat in others if seat.state == "free"]

    async def leave(self, seat: Seat, *, done: bool) -> None:
        """Give a worker back. Args: done: it scored the group."""
        seat.num_done += done
        await self._set(seat, "free")

    async def _set(self, seat: Seat, state: str) -> None:
        async with self._changed:
            seat.state = state
            self._changed.notify_all()

    def refill(self, seat: Seat) -> None:
        """Put a new worker in the place of a dead or hanging one; it starts while others work."""
        ray.kill(seat.actor)
        self._sit(seat)
        task = asyncio.get_running_loop().create_task(self._revive(seat))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def _revive(self, seat: Seat) -> None:
        for attempt in range(1, _FAILED_STARTS + 1):
            try:
                await self._load(seat)
                return
            except (RayError, TimeoutError) as error:
                why = _cause(error)
            log.warning("a reward worker does not start again: %s", why)
            ray.kill(seat.actor)
            if attempt < _FAILED_STARTS:
                self._sit(seat)
            elif self.num_alive == 1:
                self._failure = RewardError(f"no reward worker is left: {why}")
        await self._set(seat, "gone")


def _cause(error: BaseException) -> RaytuneError:
    """What a user can act on in a failed start."""
    inner = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(inner, RaytuneError):
        return inner
    if isinstance(inner, TimeoutError):
        return RewardError(f"a reward worker did not load its functions within {START_DEADLINE:g} s")
    return RewardError(f"a reward worker does not start: {first_line(inner)}")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
