"""The driver's end of rollouts: prompts in, scored groups out. Tokens go from rollout to reward actors without it.

submit -> router.generate -> group (a reference) -> rewards.submit -> scored group -> wait
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from raytune.errors import RaytuneError, RolloutError
from raytune.log import get_logger
from raytune.stages.failures import Failures
from raytune.stages.samples import Prompt, Sampling, ScoredGroup

log = get_logger(__name__)

# A reference that is ready has its value on the way, or here.
_FETCH_DEADLINE = 60.0
_ROUTER_DEADLINE = 120.0
_POLL = 1.0


class Scorer(Protocol):
    """Reward actors."""

    def submit(self, group: Any) -> Any:
        """A reference to a group in, a reference to its ScoredGroup out."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    """A prompt on its way."""

    prompt: Prompt
    sampling: Sampling
    size: int
    group: Any
    losses: int = 0


class Gatherer:
    """Implements the Protocol `Rollouts`.

    Args: router: handle of the RolloutRouter. losses: times that a prompt's group may be lost and is asked for again.
    on_router: called when the router was started anew, to tell it of the newest weights.
    """

    def __init__(
        self, router: Any, rewards: Scorer, *, losses: int = 3, on_router: Callable[[], None] | None = None
    ) -> None:
        self._router, self._rewards, self._losses, self._on_router = router, rewards, losses, on_router
        self._jobs: dict[Any, _Job] = {}
        self._lost: list[_Job] = []
        self._finished: list[ScoredGroup] = []
        self._failures = Failures()
        self._born: str = ray.get(router.born.remote(), timeout=_ROUTER_DEADLINE)

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling, group_size: int) -> None:
        for prompt in prompts:
            self._begin(_Job(prompt, sampling, group_size, None))

    def pending(self) -> int:
        return len(self._jobs) + len(self._lost) + len(self._finished)

    def wait(self, timeout: float) -> list[ScoredGroup]:
        """As Rollouts.wait. Errors: RolloutError also if a prompt cannot be answered; the others stay pending."""
        end = time.monotonic() + timeout
        while self.pending():
            self._ask_again()
            if not self._finished:
                self._wait_for_one(end, timeout)
            self._take_ready()
            if self._finished:
                finished, self._finished = self._finished, []
                return finished
        raise RolloutError("there is nothing to wait for: no prompt is pending")

    def _wait_for_one(self, end: float, timeout: float) -> None:
        done, _ = ray.wait(list(self._jobs), timeout=max(end - time.monotonic(), 0.0), fetch_local=True)
        if not done:
            shown = ", ".join(str(job.prompt.number) for job in list(self._jobs.values())[:8])
            raise RolloutError(
                f"no group of answers was finished within {timeout:g} s; {len(self._jobs)} are pending, "
                f"{self._num_drawn()} of them drawn and waiting for their rewards",
                where=f"prompts {shown}",
                fix="Look at the rollout and reward actors' load, or raise rollout_timeout.",
            )

    def _num_drawn(self) -> int:
        groups = [job.group for job in self._jobs.values()]
        return len(ray.wait(groups, num_returns=len(groups), timeout=0, fetch_local=False)[0])

    def _take_ready(self) -> None:
        """What is ready; if a prompt has failed, that is raised, and the next call goes on with the others."""
        ready, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0)
        for ref in ready:
            scored = self._take(ref)
            if scored is not None:
                self._finished.append(scored)

    def _take(self, ref: Any) -> ScoredGroup | None:
        """The scored group behind a reference that is ready; None if it was lost and has been asked for again."""
        job = self._jobs.pop(ref)
        try:
            scored: ScoredGroup = ray.get(ref, timeout=_FETCH_DEADLINE)
        except GetTimeoutError:
            self._again(job, f"its value did not arrive within {_FETCH_DEADLINE:g} s")
            return None
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, RaytuneError):
                raise cause from None
            if not isinstance(cause, RayError):
                raise RolloutError(
                    f"scoring failed: {type(cause).__name__}: {cause}", where=f"prompt {job.prompt.number}"
                ) from error
            self._again(job, f"{type(cause).__name__}")
            return None
        self._failures.tell(scored)
        return replace(scored, payload=job.group)

    def _again(self, job: _Job, reason: str) -> None:
        """A router or a reward actor died, or a node with the group on it: draw it anew, by the same seeds."""
        if job.losses >= self._losses:
            raise RolloutError(
                f"prompt {job.prompt.number} was lost {job.losses + 1} times", where=reason, fix="Look at the nodes."
            )
        log.warning("prompt %s is asked for again: %s", job.prompt.number, reason)
        self._lost.append(replace(job, losses=job.losses + 1))

    def _ask_again(self) -> None:
        """Begin with what was lost, once the router is there."""
        if not self._lost:
            return
        if not self._is_same_router() and self._on_router is not None:
            self._on_router()
        lost, self._lost = self._lost, []
        for job in lost:
            self._begin(job)

    def _is_same_router(self) -> bool:
        """Wait for a router that Ray may be starting anew; a call to one that does not run yet fails."""
        end = time.monotonic() + _ROUTER_DEADLINE
        while time.monotonic() < end:
            try:
                born: str = ray.get(self._router.born.remote(), timeout=_ROUTER_DEADLINE)
            except RayActorError:
                time.sleep(_POLL)
                continue
            except GetTimeoutError:
                break
            same, self._born = born == self._born, born
            return same
        raise RolloutError(f"the rollout router did not come back within {_ROUTER_DEADLINE:g} s")

    def _begin(self, job: _Job) -> None:
        group = self._router.generate.remote(job.prompt, job.sampling, job.size)
        self._jobs[self._rewards.submit(group)] = replace(job, group=group)
