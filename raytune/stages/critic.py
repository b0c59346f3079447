"""A policy and a critic that is a model of its own, as one Policy.

samples -> both tell their numbers -> both learn -> the policy's result with the critic's metrics
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raytune.stages.interfaces import Policy, PolicyResult, PolicySample, TokenNumbers

CRITIC = "critic"


class PolicyWithCritic:
    """Implements the Policy Protocol over two trainer groups; the critic's rule has role "critic"."""

    def __init__(self, policy: Policy, critic: Policy) -> None:
        self.policy, self.critic = policy, critic

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        result = self.policy.update(step, samples)
        critic = self.critic.update(step, samples)
        others = {f"critic_{name}": value for name, value in (("loss", critic.loss), ("grad_norm", critic.grad_norm))}
        return replace(result, metrics={**result.metrics, **critic.metrics, **others})

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        """Log-probs of the policy and its reference, values of the critic."""
        told = zip(self.policy.values(samples), self.critic.values(samples), strict=True)
        return [replace(policy, values=critic.values) for policy, critic in told]

    def save(self, folder: Path, *, with_state: bool) -> None:
        """Write the policy into `folder` and the critic into its folder `critic`."""
        self.policy.save(folder, with_state=with_state)
        (folder / CRITIC).mkdir(exist_ok=True)
        self.critic.save(folder / CRITIC, with_state=with_state)
