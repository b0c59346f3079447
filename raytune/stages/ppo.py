"""Proximal policy optimisation: rewards less a divergence, judged token by token by a critic.

prompt -> answer -> reward - kl_coef * KL -> generalised advantages against the critic -> clipped policy and value loss
"""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from raytune.losses.estimate import EstimatorRule
from raytune.losses.kl import KLControl, KLRule, update_kl_control
from raytune.losses.whiten import RunningMoments, normalise_scores, update_moments
from raytune.stages.experience import Experience, token_experience
from raytune.stages.interfaces import Policy
from raytune.stages.samples import ScoredGroup


@dataclass(frozen=True, slots=True)
class PPORule:
    """What ppo does to rewards.

    Args: score_norm: bring them to the scale of all rewards so far. target: divergence in nats an answer that the
    adaptive kl_coef aims at; None keeps the coefficient as configured, as where no divergence is in the reward.

    Example: PPORule(EstimatorRule("gae", kl_coef=0.2), score_norm=False, target=6.0)
    """

    estimator: EstimatorRule
    score_norm: bool = False
    target: float | None = 6.0


def build_experience(
    policy: Policy, rule: PPORule, *, kl: KLRule, memory: MutableMapping[str, float]
) -> Callable[[Sequence[ScoredGroup]], Experience]:
    """Return what the loop learns from the groups of a step.

    Args: memory: numbers that carry over from step to step; the loop keeps them in its checkpoints.
    """

    def experience(groups: Sequence[ScoredGroup]) -> Experience:
        rescale = _rescaling(groups, rule, memory)
        coef = rule.estimator.kl_coef if rule.target is None else memory.get("kl_coef", rule.estimator.kl_coef)
        estimator = replace(rule.estimator, kl_coef=coef)
        made = token_experience(groups, estimator, kl=kl, numbers_of=policy.values, rescale=rescale)
        if rule.target is not None and made.kl_of_answers is not None:
            control = update_kl_control(KLControl(coef, rule.target), made.kl_of_answers, len(made.samples))
            memory["kl_coef"] = control.coef
        return made

    return experience


def _rescaling(
    groups: Sequence[ScoredGroup], rule: PPORule, memory: MutableMapping[str, float]
) -> Callable[[Tensor], Tensor]:
    """Brings rewards to their scale: those of the answers, and those that answers are compared with."""
    if not rule.score_norm:
        return lambda rewards: rewards
    scores = torch.tensor([reward for group in groups for reward in group.rewards], dtype=torch.float64)
    moments = update_moments(_moments(memory), scores)
    memory.update({f"score_{name}": float(value) for name, value in asdict(moments).items()})
    return partial(normalise_scores, moments=moments)


def _moments(memory: MutableMapping[str, float]) -> RunningMoments:
    names = ("count", "mean", "squares")
    count, mean, squares = (memory.get(f"score_{name}", 0.0) for name in names)
    return RunningMoments(int(count), mean, squares)
