"""From scores to advantages, whatever the estimator: one switch over the group, token and critic kinds.

scores - divergence -> compared with a baseline (group, critic, greedy answer, nothing) -> [B, T] advantages
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from raytune.losses.advantage import DEFAULT_GROUP_RULE, GroupKind, GroupRule, flat_groups, group_advantages
from raytune.losses.gae import discounted_returns, gae, token_rewards
from raytune.losses.whiten import DEFAULT_WHITEN_RULE, WhitenRule, whiten

Estimator = Literal[GroupKind, "gae", "reinforce++", "reinforce++_baseline", "remax"]


@dataclass(frozen=True, slots=True)
class EstimatorRule:
    """How advantages are estimated, with the numbers in which systems differ.

    Args: kind: the estimator. gamma: discount per token; lam: of gae alone. kl_coef: weight of a divergence in the
    reward. group, whiten: numbers of the two steps. whiten_rewards: bring the rewards of tokens, divergence and
    all, to spread 1 around their mean (gae). whiten_gae: whiten the critic's advantages. whiten_flat: let
    groups with equal rewards take part in whitening, which gives them the same small advantage everywhere; otherwise
    they get 0 like anywhere else (reinforce++_baseline without a divergence in the reward).

    Example: EstimatorRule("rloo", kl_coef=0.05)
    """

    kind: Estimator = "group"
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.0
    group: GroupRule = DEFAULT_GROUP_RULE
    whiten: WhitenRule = DEFAULT_WHITEN_RULE
    whiten_rewards: bool = False
    whiten_gae: bool = True
    whiten_flat: bool = False


# Made by a stage from a batch of rollouts and rewards, read by estimate_advantages.
@dataclass(frozen=True, slots=True)
class Outcomes:
    """B answers of up to T tokens.

    Args: scores: [B] rewards, NaN where unscorable. groups: [B] int64, equal for answers to one prompt. mask: [B, T],
    1 on tokens that the policy produced. kl: [B, T] estimates in nats, read if kl_coef is not 0. values: [B, T]
    predictions of the critic (gae). greedy: [B] reward of the greedy answer to the same prompt (remax).
    """

    scores: Tensor
    groups: Tensor
    mask: Tensor
    kl: Tensor | None = None
    values: Tensor | None = None
    greedy: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Args: advantages: [B, T] float64, 0 outside the mask and for unscorable answers. returns: [B, T] float64, what
    the critic should have said (gae) or the reward still to come (reinforce++ and remax); None for the group kinds."""

    advantages: Tensor
    returns: Tensor | None


def estimate_advantages(outcomes: Outcomes, rule: EstimatorRule) -> Estimate:
    """Estimate each token's advantage over the whole batch of one step; no gradient, float64.

        gae                   generalised advantage estimation against the critic, then whitened over tokens
        group kinds           the answer's advantage on each of its tokens; a divergence is taken off its score
        reinforce++           discounted reward still to come, whitened over tokens
        reinforce++_baseline  the same with the group's mean taken off the scores first
        remax                 reward still to come minus the greedy answer's

    Raises: ValueError if the estimator needs values or greedy scores that are not there.
    Source: Huang et al. 2024 (arXiv 2403.17031) for whitening of rewards and of advantages; Hu 2025 (arXiv
    2501.03262) for reinforce++; Li et al. 2023 (arXiv 2310.10505) for remax.
    """
    match rule.kind:
        case "gae":
            return _critic(outcomes, rule)
        case "reinforce++":
            return _whitened_returns(outcomes.scores, outcomes.mask.bool(), outcomes, rule)
        case "reinforce++_baseline":
            return _against_group_mean(outcomes, rule)
        case "remax":
            return _against_greedy(outcomes, rule)
        case "group" | "group_batch_std" | "group_no_std" | "leave_one_out" | "rloo":
            each = group_advantages(rule.kind, _fined(outcomes, rule), outcomes.groups, rule=rule.group)
            return Estimate(torch.where(outcomes.mask.bool(), each[:, None], 0.0), None)


def _critic(outcomes: Outcomes, rule: EstimatorRule) -> Estimate:
    if outcomes.values is None:
        raise ValueError("gae needs the critic's values")
    rewards = token_rewards(outcomes.scores, outcomes.mask, kl=outcomes.kl, kl_coef=rule.kl_coef)
    known = _scorable(outcomes.scores, outcomes.mask)
    if rule.whiten_rewards:
        rewards = torch.where(known, whiten(rewards, known, rule=replace(rule.whiten, shift=False)), rewards)
    raw, returns = gae(rewards, outcomes.values, outcomes.mask, gamma=rule.gamma, lam=rule.lam)
    if not rule.whiten_gae:
        return Estimate(raw, returns)
    return Estimate(whiten(raw, known, rule=rule.whiten), returns)


def _against_group_mean(outcomes: Outcomes, rule: EstimatorRule) -> Estimate:
    centred = group_advantages("group_no_std", outcomes.scores, outcomes.groups, rule=rule.group)
    scores = torch.where(outcomes.scores.isfinite(), centred, torch.nan)
    keep = outcomes.mask.bool()
    if not rule.whiten_flat and not rule.kl_coef:
        keep = keep & ~flat_groups(outcomes.scores, outcomes.groups, rule=rule.group)[:, None]
    return _whitened_returns(scores, keep, outcomes, rule)


def _whitened_returns(scores: Tensor, keep: Tensor, outcomes: Outcomes, rule: EstimatorRule) -> Estimate:
    rewards = token_rewards(scores, outcomes.mask, kl=outcomes.kl, kl_coef=rule.kl_coef)
    returns = discounted_returns(rewards, outcomes.mask, gamma=rule.gamma)
    return Estimate(whiten(returns, _scorable(scores, keep), rule=rule.whiten), returns)


def _against_greedy(outcomes: Outcomes, rule: EstimatorRule) -> Estimate:
    if outcomes.greedy is None:
        raise ValueError("remax needs the rewards of greedy answers")
    rewards = token_rewards(outcomes.scores, outcomes.mask, kl=outcomes.kl, kl_coef=rule.kl_coef)
    returns = discounted_returns(rewards, outcomes.mask, gamma=rule.gamma)
    keep = _scorable(outcomes.scores + outcomes.greedy, outcomes.mask)
    return Estimate(torch.where(keep, returns - outcomes.greedy.double()[:, None], 0.0), returns)


def _fined(outcomes: Outcomes, rule: EstimatorRule) -> Tensor:
    """Scores [B] less the divergence summed over the answer, for estimators that know whole answers only."""
    if outcomes.kl is None or not rule.kl_coef:
        return outcomes.scores
    fines = torch.where(outcomes.mask.bool(), outcomes.kl.double(), 0.0).sum(dim=1)
    return outcomes.scores.double() - rule.kl_coef * fines


def _scorable(scores: Tensor, mask: Tensor) -> Tensor:
    return mask.bool() & scores.isfinite()[:, None]
