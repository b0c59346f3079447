"""Which worker scores which group, how long that may take, and what becomes of a group that nobody can score."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors import stacks
from actors.reward_model import model_loaded
from actors.reward_seats import Seat, Seats, first_line
from raytune.config.reward import RewardConfig
from raytune.rewards.base import RewardUnavailable
from raytune.rewards.builtin import listed
from raytune.rewards.table import unscorable
from raytune.stages.samples import Group, ScoredGroup
from raytune.stages.scoring import scored

_MARGIN = 10.0
"""Seconds beyond what the functions may take."""
_MAX_WAITING = 100_000


@dataclass(frozen=True, slots=True)
class RewardLimits:
    """When a group is taken from a worker, and how often it is given to another.

    Args: seconds: for one group in one worker. attempts: times that a group is given to a worker. wait: seconds that a
    group may wait for a free one.

    Example: RewardLimits(seconds=130.0)
    """

    seconds: float
    attempts: int = 3
    wait: float = 3600.0

    @classmethod
    def of(cls, cfg: RewardConfig) -> "RewardLimits":
        """Functions that are not async take turns, and each may be asked twice, each time within its limit."""
        asks_model = cfg.reward_model is not None and cfg.reward_model_type != "api"
        functions = len(listed(cfg)) + asks_model
        return cls(2 * cfg.reward_time_limit * max(functions, 1) + _MARGIN)


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why a group could not be scored in a worker. by_model: the reward model could not be reached."""

    why: str
    by_model: bool = False


class RewardDesk:
    """An async actor: many groups may wait here, and each worker has one at a time.

    A desk that was restarted starts its workers anew with the first group; what it knew is scored again.

    Args: kind: class of the workers, made with `job` and what the task prepare(job) returns. model: name of the reward
    model that they ask, which must be loaded before a group is tried again.
    """

    def __init__(
        self,
        kind: type[Any],
        job: Any,
        prepare: Callable[[Any], Any],
        places: Sequence[dict[str, Any]],
        limits: RewardLimits,
        model: str | None = None,
    ) -> None:
        stacks.register("reward desk")
        self._limits = limits
        self._model = model
        self._made = (ray.remote(kind), job, ray.remote(num_cpus=0)(prepare), places)
        self._shared: Any = None
        self._starting: asyncio.Task[tuple[Seats, dict[str, float]]] | None = None
        self._poison: dict[str, str] = {}

    async def start(self) -> None:
        """Wait until all workers have started. Errors: the first that one meets."""
        await self._started()

    async def _started(self) -> tuple[Seats, dict[str, float]]:
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> tuple[Seats, dict[str, float]]:
        kind, job, prepare, places = self._made
        # Workers are placed at once, and made when what they share is there.
        self._shared = prepare.remote(job)
        seats = Seats(kind, (job, self._shared), places, wait=self._limits.wait)
        return seats, await seats.start()

    async def shared(self) -> Any:
        """What `prepare` made for the workers."""
        await self._started()
        return await self._shared

    async def score(self, boxed: Sequence[Any]) -> ScoredGroup:
        """Score the group behind boxed[0], once it is there: who asks keeps the deadline of its making.

        Errors: RewardError if no worker is left; what the making of the group raised; Ray's if the group is lost.
        """
        group = boxed[0]
        name = group.hex()
        await _made(group)
        seats, weights = await self._started()
        tried: list[int] = []
        trouble: _Trouble | None = None
        while len(tried) < self._limits.attempts and name not in self._poison:
            seat = await seats.take(tried)
            tried.append(seat.number)
            found = await self._attempt(seats, seat, group)
            if isinstance(found, ScoredGroup):
                return found if trouble is None else replace(found, trouble=trouble.why)
            trouble = found
            if trouble.by_model and self._model is not None:
                await model_loaded(self._model)
        if trouble is not None:
            self._poison[name] = f"{trouble.why} ({len(tried)} attempts)"
        tokens = await _made(group)
        return scored(tokens, unscorable(weights, len(tokens.drawn), self._poison[name]), seconds=0.0)

    async def _attempt(self, seats: Seats, seat: Seat, group: Any) -> ScoredGroup | _Trouble:
        """Whatever comes of it, the seat is free or being filled anew afterwards."""
        try:
            found = await asyncio.wait_for(seat.actor.score.remote(group), self._limits.seconds)
        except RayTaskError as error:
            # First, for Ray makes it an instance of what the worker raised, a TimeoutError for one.
            await seats.leave(seat, done=False)
            if isinstance(error.cause, RewardUnavailable):
                return _Trouble(str(error.cause), by_model=True)
            raise error.cause from error
        except RayActorError as error:
            seats.refill(seat)
            return _Trouble(f"the reward worker died: {first_line(error)}")
        except RayError:
            await seats.leave(seat, done=False)
            raise
        except TimeoutError:
            seats.refill(seat)
            return _Trouble(f"scoring took longer than {self._limits.seconds:g} s")
        await seats.leave(seat, done=True)
        return found


async def _made(group: Any) -> Group:
    """The group, when it is there. Errors: what its making raised, as it was raised."""
    try:
        return await group
    except RayTaskError as error:
        # Unwrapped, so that it reaches the driver in one wrapping, not two.
        raise error.cause from error


def start_desk(
    kind: type[Any],
    job: Any,
    prepare: Callable[[Any], Any],
    places: Sequence[dict[str, Any]],
    limits: RewardLimits,
    model: str | None = None,
) -> Any:
    """Start a desk's process and return its handle; `start` tells when its workers are there."""
    # Restarts are of the whole run; that one group is not scored again and again is for the retries to end.
    actor = ray.remote(RewardDesk).options(
        num_cpus=0, max_restarts=-1, max_task_retries=3, max_concurrency=_MAX_WAITING
    )
    return actor.remote(kind, job, prepare, places, limits, model)
