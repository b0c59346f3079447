"""The two sides that take turns on shared devices, as raytune.stages.turns wants them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.placement import Plan
from actors.policy import PolicyGroup
from actors.sleepers import ReplicaSleepers
from raytune.config.run import RunConfig
from raytune.launch_rl.roles import Roles
from raytune.launch_rl.rollouts import adapter_rank, router_limits
from raytune.stages.critic import PolicyWithCritic
from raytune.stages.interfaces import Policy, Rollouts, WeightSync
from raytune.stages.turns import Turns

# For tens of gigabytes to leave a GPU or come back.
_DEADLINE = 120.0


class AllRanks:
    """Implements Offloads over the policy's ranks and those of a critic of its own."""

    def __init__(self, *groups: PolicyGroup | None) -> None:
        self._groups = [group for group in groups if group is not None]

    def offload(self, *, weights: bool) -> None:
        for group in self._groups:
            group.offload(weights=weights)

    def onload(self) -> None:
        for group in self._groups:
            group.onload()


@dataclass(frozen=True, slots=True)
class Seams:
    """What a loop sees of the actors; with `turns`, each waits for its turn."""

    rollouts: Rollouts
    policy: Policy
    weights: WeightSync
    turns: Turns | None = None


def seams_of(roles: Roles) -> Seams:
    """The actors of a run, a critic of its own within the policy."""
    learner = roles.policy if roles.critic is None else PolicyWithCritic(roles.policy, roles.critic)
    if roles.sleepers is None:
        return Seams(roles.rollouts, learner, roles.weights)
    ranks = AllRanks(roles.policy, roles.critic)
    turns = Turns(roles.rollouts, learner, roles.weights, replicas=roles.sleepers, ranks=ranks)
    return Seams(turns.rollouts, turns.policy, turns.weights, turns)


def put_to_sleep(cfg: RunConfig, plan: Plan, replicas: Sequence[Any], router: Any) -> ReplicaSleepers:
    """Replicas that serve give their devices back, and from now on are woken for their turns.

    Whole weights come with each version, so they may be forgotten; those below an adapter come never again.
    """
    level = 1 if adapter_rank(cfg, plan) else 2
    limits = router_limits(cfg)
    longest = max(limits.build, limits.refit) + _DEADLINE
    sleepers = ReplicaSleepers(
        replicas, router, level=level, gpus=plan.gpus > 0, deadline=_DEADLINE, router_deadline=longest
    )
    sleepers.sleep()
    return sleepers
