"""The router: each prompt goes to the replica with the least to do, and elsewhere if that one fails.

driver -> router -> replica; a watch per replica: heartbeat -> dead -> restart -> newest weights -> serving again
"""

import asyncio
import pickle
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import stacks
from actors.fleet import Fleet, FleetPolicy, MemberView, State
from actors.rollout_watch import Watch, reason_of
from actors.rollout_weights import Parcel, Refit
from raytune.errors import RaytuneError, ReplicaLostError, RolloutError
from raytune.log import get_logger
from raytune.stages.samples import Group, Prompt, Sampling

log = get_logger(__name__)

# Calls that wait inside the router cost little; a run never has so many prompts on their way.
_SLOTS = 100_000
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Seconds and counts.

    Args: attempts: replicas a prompt is given to. answers: that a replica has at once; more wait here, for whoever is
    free first. request: for one group in one replica. wait: without any replica that serves. build: of an engine.
    refit: for giving weights to one replica.

    Example: RouterLimits(answers=128)
    """

    attempts: int = 5
    answers: int = 256
    request: float = 1800.0
    wait: float = 900.0
    build: float = 900.0
    refit: float = 180.0


class RolloutRouter:
    """An async actor with all replicas of a run.

    Started again after its own death it finds the replicas as they are; what it was asked for is asked again.

    Args: replicas: pickled handles of Replica actors: as plain bytes they are part of what Ray starts the actor anew
    from, while handles would be objects that may be gone by then. target: version of the weights they need at first.
    takes_turns: others compute on the replicas' GPUs in turn; started anew, it rests until it is told whose turn it is.
    """

    def __init__(
        self,
        replicas: bytes,
        *,
        target: int = 0,
        policy: FleetPolicy | None = None,
        limits: RouterLimits | None = None,
        refit: Refit | None = None,
        takes_turns: bool = False,
    ) -> None:
        stacks.register("rollout router")
        self._replicas: list[Any] = pickle.loads(replicas)
        self.limits = limits or RouterLimits()
        self.fleet = Fleet(len(self._replicas), policy, target=target)
        self._queue: deque[tuple[asyncio.Future[int], int]] = deque()
        self._watches: list[Watch] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: RolloutError | None = None
        self._served_at = time.monotonic()
        self._born = uuid.uuid4().hex
        self.newest: Refit = refit or Parcel()
        self.awake = asyncio.Event()
        if not (takes_turns and ray.get_runtime_context().was_current_actor_reconstructed):
            self.awake.set()

    @ray.method(max_task_retries=-1)
    async def start(self, deadline: float) -> list[MemberView]:
        """Build the engines and wait until all serve, or those do that ever will. Raises RolloutError if none does."""
        # Nobody else computes before a run's first turn, also when this is a second start.
        self.awake.set()
        self._begin()
        end = time.monotonic() + deadline
        while busy := self.fleet.in_state(State.RESTARTING, State.STALE, State.DEAD):
            if time.monotonic() > end:
                if self.fleet.in_state(State.HEALTHY):
                    log.warning("replicas %s did not start within %g s", busy, deadline)
                    break
                raise RolloutError(f"no replica started within {deadline:g} s", where=self.fleet.picture())
            await asyncio.sleep(_POLL)
        if not self.fleet.in_state(State.HEALTHY):
            raise self._failure or RolloutError("no rollout replica starts", where=self.fleet.picture())
        return self.fleet.view()

    async def generate(self, prompt: Prompt, sampling: Sampling, group_size: int) -> Group:
        """The answers to one prompt, all from one replica, for its prefix cache.

        Errors: RolloutError if no engine takes the prompt, if every attempt failed, or no replica is left.
        """
        self._begin()
        reasons: list[str] = []
        while len(reasons) < self.limits.attempts:
            index = await self._turn(sampling.num_drawn(group_size), again=bool(reasons))
            found = await self._attempt(index, prompt, sampling, group_size)
            if isinstance(found, Group):
                return found
            reasons.append(f"replica {index}: {found}")
            log.warning("prompt %s goes elsewhere; %s", prompt.number, reasons[-1])
        raise RolloutError(f"prompt {prompt.number} failed {len(reasons)} times", where="; ".join(reasons))

    @ray.method(max_task_retries=-1)
    async def published(self, parcel: Refit, version: int, received: Sequence[int]) -> None:
        """Replicas number `received` have weights `version`; others get them by `parcel` before they serve again."""
        self._begin()
        self.newest = parcel
        self.fleet.advance(version, frozenset(received))
        self.changed()
        for watch in self._watches:
            watch.wake.set()

    @ray.method(max_task_retries=-1)
    async def born(self) -> str:
        """Another text after each start of this actor."""
        return self._born

    @ray.method(max_task_retries=-1)
    async def members(self) -> list[MemberView]:
        """The state of every replica."""
        return self.fleet.view()

    @ray.method(max_task_retries=-1)
    async def rest(self, resting: bool) -> None:
        """While resting, no engine is built or given weights: others have its memory. Whoever asks has deadlines.

        Returns once those that were being built or given weights are done: only then can they be put to sleep.
        """
        if not resting:
            self.awake.set()
            return
        self.awake.clear()
        while any(watch.works for watch in self._watches):
            await asyncio.sleep(_POLL)

    def _begin(self) -> None:
        """Start the watches; the constructor has no event loop yet."""
        if self._tasks:
            return
        self._watches = [Watch(self, index, replica) for index, replica in enumerate(self._replicas)]
        self._tasks = [asyncio.create_task(watch.run()) for watch in self._watches]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A watch ends when its replica is gone, or by an error of ours: then everybody who waits is told."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failure = RolloutError(f"a replica's watch ended: {type(error).__name__}: {error}")
        elif len(self.fleet.in_state(State.GONE)) == len(self._replicas):
            self._failure = RolloutError("no rollout replica is left", where=self.fleet.picture())
        self.changed()

    def changed(self) -> None:
        """Hand replicas to those who wait, first come first served; called after whatever may have freed one."""
        while self._queue and self._failure is not None:
            self._settle(self._queue.popleft()[0], self._failure)
        while self._queue and (index := self.fleet.pick(self.limits.answers)) is not None:
            self._served_at = time.monotonic()
            future, size = self._queue.popleft()
            if not future.done():
                self.fleet.assign(index, size)
                future.set_result(index)

    def _settle(self, future: "asyncio.Future[int]", error: RolloutError) -> None:
        if not future.done():
            future.set_exception(error)

    async def _turn(self, size: int, *, again: bool) -> int:
        """Wait for a replica, which has the answers on its account then. Prompts that failed before go first."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        (self._queue.appendleft if again else self._queue.append)((future, size))
        self.changed()
        while not (await asyncio.wait({future}, timeout=self.limits.wait))[0]:
            if self.fleet.in_state(State.HEALTHY, State.SUSPECT):
                continue
            if time.monotonic() - self._served_at > self.limits.wait:
                future.cancel()
                raise RolloutError(f"no replica served for {self.limits.wait:g} s", where=self.fleet.picture())
        return future.result()

    async def _attempt(self, index: int, prompt: Prompt, sampling: Sampling, size: int) -> Group | str:
        """One replica's try; a text says why another must do it. Raises what no replica could mend."""
        watch, limit, done = self._watches[index], self.limits.request, False
        ref = self._replicas[index].generate.remote(prompt, sampling, size)
        try:
            group = await watch.unless_lost(ref, limit)
            done = True
            return group
        except RayTaskError as error:
            # First of all: Ray's error is an instance of its cause's class too.
            if not isinstance(error.cause, ReplicaLostError):
                raise error.cause if isinstance(error.cause, RaytuneError) else error from None
            self.fleet.doubt(index, reason_of(error))
            return reason_of(error)
        except RayActorError as error:
            # Of a process that is gone, and perhaps being replaced already: the watch, woken below, finds out.
            self.fleet.doubt(index, reason_of(error))
            return reason_of(error)
        except (RayError, ReplicaLostError) as error:
            ray.cancel(ref)
            return reason_of(error)
        except TimeoutError:
            ray.cancel(ref)
            self.fleet.doubt(index, f"a group took longer than {limit:g} s")
            return f"no answers within {limit:g} s"
        finally:
            self.fleet.release(index, sampling.num_drawn(size), done=done)
            if not done:
                watch.wake.set()
            self.changed()


def start_router(replicas: Sequence[Any], **settings: Any) -> Any:
    """Start the router's actor on the caller's node, whose loss ends the run anyway; settings as of RolloutRouter.

    Ray starts a dead one anew: prompts that it had are lost, whereas short questions to it just take longer.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(RolloutRouter).options(
        num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=_SLOTS, scheduling_strategy=here
    )
    return actor.remote(pickle.dumps(list(replicas)), **settings)
