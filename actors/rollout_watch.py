"""One replica under watch: heartbeats while it serves, and the way back when it does not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.fleet import State
from raytune.errors import ConfigError, RaytuneError, ReplicaLostError
from raytune.log import get_logger

if TYPE_CHECKING:
    from actors.rollout import RolloutRouter

log = get_logger(__name__)
T = TypeVar("T")
_POLL = 0.5


class Watch:
    """Drives one replica through the fleet's states. `wake` makes it look at once instead of at the next heartbeat."""

    def __init__(self, router: "RolloutRouter", index: int, replica: Any) -> None:
        self._router, self._index, self._replica = router, index, replica
        self._fleet = router.fleet
        self.wake = asyncio.Event()
        self.works = False
        """Whether the engine is being built or given weights."""
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._silent = False

    async def run(self) -> None:
        """Until the replica is gone for good."""
        while (state := self._fleet.state(self._index)) is not State.GONE:
            match state:
                case State.HEALTHY | State.SUSPECT:
                    await self._beat()
                case State.DEAD:
                    await self._restart()
                case State.RESTARTING:
                    await self._at_work(self._build)
                case State.STALE:
                    await self._at_work(self._refit)
            self._router.changed()
        log.error("rollout replica %s is gone: %s", self._index, self._fleet.members[self._index].reason)

    async def unless_lost(self, ref: Any, seconds: float) -> Any:
        """The value of a reference. Raises ReplicaLostError as soon as the replica is dead, TimeoutError."""
        lost = self._lost
        work = asyncio.ensure_future(_awaited(ref))
        done, _ = await asyncio.wait({work, lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        work.cancel()
        if lost in done:
            raise ReplicaLostError(lost.result())
        raise TimeoutError

    async def _beat(self) -> None:
        policy = self._fleet.policy
        if self._fleet.state(self._index) is State.HEALTHY:
            await self._sleep(policy.interval)
        try:
            health = await asyncio.wait_for(_awaited(self._replica.health.remote()), policy.deadline)
        except RayError as error:
            self._silent = False
            self._fleet.lose(self._index, reason_of(error))
        except TimeoutError:
            self._silent = True
            self._fleet.miss(self._index, f"no heartbeat for {policy.deadline:g} s")
        else:
            if health.stale:
                self._fleet.outdated(self._index, "missed a weight update")
            elif health.busy:
                self._fleet.alive(self._index)
            else:
                self._fleet.beat(self._index, health.version)

    async def _restart(self) -> None:
        """Send its prompts elsewhere, and begin anew after a while if that failed before."""
        member = self._fleet.members[self._index]
        log.warning("rollout replica %s is dead: %s", self._index, member.reason)
        self._lost.set_result(member.reason)
        self._lost = asyncio.get_running_loop().create_future()
        await asyncio.sleep(self._fleet.policy.backoff(member.failures))
        self._fleet.restart(self._index)

    async def _at_work(self, work: Callable[[], Awaitable[None]]) -> None:
        """What uses the replica's memory, once that is its turn."""
        await self._router.awake.wait()
        self.works = True
        try:
            await work()
        finally:
            self.works = False

    async def _build(self) -> None:
        """Its engine anew: in the same process if that answers, else in the one that Ray starts instead."""
        limit = self._router.limits.build
        try:
            async with asyncio.timeout(limit):
                if self._silent and not await self._answers():
                    await asyncio.to_thread(ray.kill, self._replica, no_restart=False)
                self._silent = False
                await self._until_up()
                await self._built()
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, ConfigError):
                self._fleet.give_up(self._index, str(error.cause))
            else:
                self._fleet.lose(self._index, reason_of(error))
        except TimeoutError:
            self._silent = True
            self._fleet.lose(self._index, f"its engine was not built within {limit:g} s")
        else:
            self._fleet.restarted(self._index)

    async def _built(self) -> None:
        """Build the engine, unless it is whole: then it is this router that is new."""
        if self._fleet.members[self._index].restarts == 0:
            try:
                health = await asyncio.wait_for(_awaited(self._replica.health.remote()), self._fleet.policy.deadline)
                if not health.stale:
                    return
            except (TimeoutError, RayTaskError):
                log.debug("replica %s has no engine yet", self._index)
        await self._replica.build.remote()

    async def _answers(self) -> bool:
        try:
            await asyncio.wait_for(_awaited(self._replica.node.remote()), self._fleet.policy.deadline)
        except RayError:
            # Dead, which Ray notices by itself.
            return True
        except TimeoutError:
            return False
        return True

    async def _until_up(self) -> None:
        """Wait for a process that Ray starts; whoever calls has the deadline."""
        while True:
            try:
                await self._replica.node.remote()
                return
            except RayActorError:
                await asyncio.sleep(_POLL)

    async def _refit(self) -> None:
        limit = self._router.limits.refit
        try:
            version = await asyncio.wait_for(self._router.newest.refit(self._replica), limit)
        except (RayError, RaytuneError) as error:
            # The weights may be gone, or half there: a new engine and the next version mend both.
            self._fleet.lose(self._index, reason_of(error))
        except TimeoutError:
            self._silent = True
            self._fleet.lose(self._index, f"it did not take weights within {limit:g} s")
        else:
            self._fleet.refitted(self._index, version)
            if self._fleet.state(self._index) is State.STALE:
                await self._sleep(self._fleet.policy.interval)

    async def _sleep(self, seconds: float) -> None:
        """Until something happens, at most so long."""
        self.wake.clear()
        try:
            await asyncio.wait_for(self.wake.wait(), seconds)
        except TimeoutError:
            return


async def _awaited(ref: Any) -> Any:
    """asyncio wants a coroutine where Ray has a reference."""
    return await ref


def reason_of(error: BaseException) -> str:
    """One line of why a replica failed."""
    if isinstance(error, RayTaskError):
        return f"{error.cause}".splitlines()[0]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
