"""Who computes when, where ranks and rollout replicas share their devices. One owner of the phases: Turns.

draw: replicas hold weights and caches -> sleep -> learn: ranks hold everything -> hand over -> draw -> ...
hand over: ranks put the optimizer away -> replicas' weights -> publish -> ranks put weights away -> replicas' caches
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from raytune.errors import RolloutError
from raytune.stages.interfaces import Policy, PolicyResult, PolicySample, Rollouts, TokenNumbers, WeightSync
from raytune.stages.samples import Prompt, Sampling, ScoredGroup

Part = Literal["weights", "kv_cache"]


class Sleepers(Protocol):
    """Rollout replicas. Turns owns when they sleep; they own how."""

    def sleep(self) -> None:
        """Give the device's memory back. Weights may be lost: they come with the next hand-over."""
        ...

    def wake(self, part: Part) -> None:
        """Take memory for weights, which are then published, or for keys and values: then they serve."""
        ...


class Offloads(Protocol):
    """Trainer ranks. Turns owns when they give way; they own how."""

    def offload(self, *, weights: bool) -> None:
        """Move optimizer state to the host, with `weights` the model too."""
        ...

    def onload(self) -> None:
        """Take everything back to the device."""
        ...


class Turns:
    """The phases of a run, and the seams of its loop within them: `rollouts`, `policy` and `weights`.

    At first the replicas sleep and the ranks hold everything. No prompt may be pending when the ranks' turn comes, so
    drawing ahead (max_staleness) and taking turns exclude each other.
    """

    def __init__(
        self, rollouts: Rollouts, policy: Policy, weights: WeightSync, *, replicas: Sleepers, ranks: Offloads
    ) -> None:
        self._rollouts, self._weights, self._replicas, self._ranks = rollouts, weights, replicas, ranks
        self.phase: Literal["draw", "learn"] = "learn"
        self._half_awake = False
        self._version = 0
        self._waited = 0.0
        self.rollouts = _TurnRollouts(rollouts, self.draw)
        self.policy = _TurnPolicy(policy, self.learn)
        self.weights = _TurnWeights(self.hand_over)

    def learn(self) -> None:
        """The ranks' turn. Raises RolloutError when answers are still being drawn."""
        if self.phase == "learn":
            return
        if pending := self._rollouts.pending():
            raise RolloutError(f"{pending} prompts are being drawn, and the ranks' turn would halt them")
        begun = time.monotonic()
        self._replicas.sleep()
        # Before the ranks are asked: one may be lost, and those that replace them begin with everything.
        self.phase = "learn"
        self._ranks.onload()
        self._waited = time.monotonic() - begun

    def begin_again(self) -> None:
        """The ranks are to be replaced, wherever their loss broke the phases off: the replicas sleep."""
        if self._half_awake:
            self._replicas.wake("kv_cache")
        if self._half_awake or self.phase == "draw":
            self._replicas.sleep()
        self.phase, self._half_awake = "learn", False

    def draw(self) -> None:
        """The replicas' turn. After a save, say, they have the weights of before once more."""
        if self.phase == "learn":
            self.hand_over(self._version)

    def hand_over(self, version: int) -> Mapping[str, float]:
        """Publish the ranks' weights as `version` and give the replicas their turn; `turns` are its own seconds."""
        self.learn()
        begun = time.monotonic()
        self._ranks.offload(weights=False)
        self._replicas.wake("weights")
        self._half_awake = True
        woken = time.monotonic()
        laps = self._weights.publish(version)
        published = time.monotonic()
        self._ranks.offload(weights=True)
        self._replicas.wake("kv_cache")
        self.phase, self._version, self._half_awake = "draw", version, False
        turns = self._waited + woken - begun + time.monotonic() - published
        self._waited = 0.0
        return {**laps, "turns": turns}


class _TurnRollouts:
    """Implements Rollouts."""

    def __init__(self, own: Rollouts, turn: Callable[[], None]) -> None:
        self._own, self._turn = own, turn

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling, group_size: int) -> None:
        self._turn()
        self._own.submit(prompts, sampling, group_size)

    def wait(self, timeout: float) -> list[ScoredGroup]:
        return self._own.wait(timeout)

    def pending(self) -> int:
        return self._own.pending()


class _TurnPolicy:
    """Implements Policy."""

    def __init__(self, own: Policy, turn: Callable[[], None]) -> None:
        self._own, self._turn = own, turn

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        self._turn()
        return self._own.update(step, samples)

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        self._turn()
        return self._own.values(samples)

    def save(self, folder: Path, *, with_state: bool) -> None:
        self._turn()
        self._own.save(folder, with_state=with_state)


class _TurnWeights:
    """Implements WeightSync."""

    def __init__(self, turn: Callable[[int], Mapping[str, float]]) -> None:
        self._turn = turn

    def publish(self, version: int) -> Mapping[str, float]:
        return self._turn(version)
