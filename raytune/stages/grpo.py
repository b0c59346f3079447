"""Group-relative policy optimisation, and every method that compares answers without a critic.

prompt -> G answers -> rewards -> each against the others of its prompt -> clipped policy gradient
"""

from collections.abc import Callable, Sequence

from raytune.losses.estimate import EstimatorRule
from raytune.losses.kl import KLRule
from raytune.stages.experience import Experience, group_experience, needs_tokens, token_experience
from raytune.stages.interfaces import Policy
from raytune.stages.samples import ScoredGroup


def build_experience(
    policy: Policy, rule: EstimatorRule, *, kl: KLRule
) -> Callable[[Sequence[ScoredGroup]], Experience]:
    """Return what the loop learns from the groups of a step.

    Args: kl: the estimator of a divergence in the reward; one in the loss is the policy's own matter.
    """

    def experience(groups: Sequence[ScoredGroup]) -> Experience:
        if not needs_tokens(rule):
            return group_experience(groups, rule)
        return token_experience(groups, rule, kl=kl, numbers_of=policy.values)

    return experience
