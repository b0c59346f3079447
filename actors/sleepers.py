"""Rollout replicas that take turns with trainer ranks; implements the Sleepers Protocol of raytune.stages.turns."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.rollout_watch import reason_of
from raytune.errors import ReplicaLostError, RolloutError
from raytune.log import get_logger

log = get_logger(__name__)


class ReplicaSleepers:
    """All replicas of a run. One that does not sleep or wake has no engine then, until the router has built another.

    That none does is an error, unless one is lost: its process holds nothing of the device, and the router starts it
    anew.

    Args: router: its replicas are neither built nor refitted while they sleep on a GPU: the ranks have its memory.
    level: 1 keeps weights in the host's memory, 2 forgets them. deadline: seconds for all to sleep or wake.
    router_deadline: for the router to rest, which it does when no engine is being built or given weights.
    """

    def __init__(
        self,
        replicas: Sequence[Any],
        router: Any,
        *,
        level: int,
        gpus: bool,
        deadline: float,
        router_deadline: float,
    ) -> None:
        self._replicas, self._router, self._level = list(replicas), router, level
        self._gpus, self._deadline, self._router_deadline = gpus, deadline, router_deadline
        self._known: set[int] = set()  # replicas whose trouble was said
        self._resting = False

    def sleep(self) -> None:
        self._rest(True)
        self._each("sleep", lambda one: one.sleep.remote(self._level))

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        self._each(f"wake up ({part})", lambda one: one.wake_up.remote([part]))
        if part == "kv_cache":
            self._rest(False)

    def tell_router(self) -> None:
        """Tell a router that was started anew whose turn it is. Raises RolloutError if it does not listen."""
        if not self._gpus:
            return
        try:
            ray.get(self._router.rest.remote(self._resting), timeout=self._router_deadline)
        except GetTimeoutError:
            raise RolloutError(f"the rollout router did not answer within {self._router_deadline:g} s") from None
        except RayActorError as error:
            raise RolloutError("the rollout router died", where=reason_of(error)) from None

    def _rest(self, resting: bool) -> None:
        self._resting = resting
        self.tell_router()

    def _each(self, what: str, call: Callable[[Any], Any]) -> None:
        refs = [call(one) for one in self._replicas]
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=self._deadline)
        failures = {index: self._failure(ref, ref in done) for index, ref in enumerate(refs)}
        wrong = {index: error for index, error in failures.items() if error is not None}
        reasons = {index: self._reason(error) for index, error in wrong.items()}
        for index, reason in reasons.items():
            level = logging.DEBUG if index in self._known else logging.WARNING
            log.log(level, "replica %s did not %s: %s", index, what, reason)
        self._known = set(wrong)
        if len(wrong) == len(refs) and not any(map(_is_lost, wrong.values())):
            raise RolloutError(f"no replica could {what}", where="; ".join(reasons.values()))

    def _failure(self, ref: Any, done: bool) -> RayError | None:
        try:
            ray.get(ref, timeout=self._deadline if done else 0)
        except RayError as error:
            return error
        return None

    def _reason(self, error: RayError) -> str:
        return f"not within {self._deadline:g} s" if isinstance(error, GetTimeoutError) else reason_of(error)


def _is_lost(error: RayError) -> bool:
    """Whether its process is gone, or new and without an engine."""
    return isinstance(error, RayActorError) or (
        isinstance(error, RayTaskError) and isinstance(error.cause, ReplicaLostError)
    )
