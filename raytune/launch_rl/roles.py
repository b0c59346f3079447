"""What the parts of the launch hand each other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.gather import Gatherer
from actors.policy import PolicyGroup
from actors.reward import RewardPool
from actors.sleepers import ReplicaSleepers
from actors.weights import WeightPublisher
from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import RaytuneError, RolloutError
from raytune.stages.answerable import PromptRows
from raytune.stages.samples import Prompt


@dataclass(frozen=True, slots=True)
class Ends:
    """What the launch of any run provides.

    Args: claim: context in which the output folder is this run's. publish: puts the finished weights into it.
    interrupted: whether to save and end. save_from_now_on: told before the first step.
    """

    claim: Callable[[], AbstractContextManager[None]]
    publish: Callable[[PolicyGroup, CheckpointStore], None]
    interrupted: Callable[[], bool]
    save_from_now_on: Callable[[], None]


@dataclass
class Roles:
    """The actors of a run and the sizes they agreed on. sleepers: replicas that take turns with the ranks."""

    policy: PolicyGroup
    critic: PolicyGroup | None
    rewards: RewardPool
    rollouts: Gatherer
    weights: WeightPublisher
    sleepers: ReplicaSleepers | None
    store: PromptRows
    total_steps: int
    prompts_per_step: int
    group_size: int
    stop_ids: tuple[int, ...]
    held_out: list[Prompt]


def place(placement: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=index)


def wait_for(ref: Any, timeout: float, what: str) -> Any:
    try:
        return ray.get(ref, timeout=timeout)
    except GetTimeoutError:
        raise RolloutError(f"waited {timeout:g} s for {what}") from None
    except RayActorError as error:
        raise RolloutError(f"a process died that was to wait for {what}: {error}") from None
    except RayTaskError as error:
        if isinstance(error.cause, RaytuneError):
            raise error.cause from None
        raise


def kill(handles: list[Any]) -> None:
    for handle in handles:
        ray.kill(handle)


def forget(call: Any) -> None:
    """Before its actor is killed: else Ray writes to the screen that it will try the call again. One that has ended, or
    failed, is as it was."""
    ray.cancel(call)
