"""From scored groups to what the policy learns from.

scores -> advantages (of whole answers, or of tokens where a critic or a divergence has a say) -> samples
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from raytune.losses.advantage import GroupKind, flat_groups, group_advantages
from raytune.losses.estimate import EstimatorRule, Outcomes, estimate_advantages
from raytune.losses.kl import KLRule, kl_estimate
from raytune.stages.interfaces import PolicySample, TokenNumbers
from raytune.stages.samples import ScoredGroup


# Made here, read by the loop.
@dataclass(frozen=True, slots=True)
class Experience:
    """Samples of one rollout batch. kl: mean divergence from the reference over tokens, kl_of_answers: over answers
    of its sum, both in nats; kl_coef: what it was weighed with in the rewards. None where there is none in them.

    Example: Experience(samples=[...], kl=0.01, kl_of_answers=0.31, kl_coef=0.2)
    """

    samples: list[PolicySample]
    kl: float | None = None
    kl_of_answers: float | None = None
    kl_coef: float | None = None

    def numbers(self) -> dict[str, float]:
        """What the log says of it."""
        known = {"kl": self.kl, "kl_coef": self.kl_coef}
        return {name: value for name, value in known.items() if value is not None}


def needs_tokens(rule: EstimatorRule) -> bool:
    """Whether advantages differ between the tokens of an answer, or depend on what the model says of them."""
    alike = rule.kind in get_args(GroupKind) or (rule.kind == "remax" and rule.gamma == 1)
    return not alike or bool(rule.kl_coef)


def group_experience(groups: Sequence[ScoredGroup], rule: EstimatorRule) -> Experience:
    """Advantages from the scores alone. Answers without a score are left out: nothing is known about them."""
    scores, numbers = _scores(groups)
    match rule.kind:
        case "group" | "group_batch_std" | "group_no_std" | "leave_one_out" | "rloo":
            advantages = group_advantages(rule.kind, scores, numbers, rule=rule.group)
        case "remax":
            advantages = scores - _greedy(groups)
        case _:
            raise ValueError(f"advantage {rule.kind} needs numbers for each token")
    return Experience(
        [
            _sample(group, place, advantage)
            for (group, place), advantage in zip(_answers(groups), advantages.tolist(), strict=True)
            if not math.isnan(group.rewards[place])
        ]
    )


def token_experience(
    groups: Sequence[ScoredGroup],
    rule: EstimatorRule,
    *,
    kl: KLRule,
    numbers_of: Callable[[Sequence[PolicySample]], list[TokenNumbers]],
    rescale: Callable[[Tensor], Tensor] = lambda rewards: rewards,
) -> Experience:
    """Advantages of each token.

    Args: kl: how the divergence that `rule.kl_coef` weighs is estimated. numbers_of: Policy.values. rescale: what is
    done to rewards [B] of any answers before they are compared (normalising).
    """
    rewards, group_numbers = _scores(groups)
    scores = rescale(rewards)
    blank = [_sample(group, place, 0.0) for group, place in _answers(groups)]
    keep = [place for place, score in enumerate(scores.tolist()) if not math.isnan(score)]
    blank = [blank[place] for place in keep]
    if not blank:
        return Experience([])
    tokens = numbers_of(blank)
    mask = _padded([numbers.mask.astype(np.float32) for numbers in tokens])
    divergence = None
    if rule.kl_coef:
        logprobs = _padded([numbers.logprobs for numbers in tokens])
        reference = _padded([_known(numbers.reference, "reference") for numbers in tokens])
        divergence = kl_estimate(logprobs, reference, kl)
    values = None
    if rule.kind == "gae":
        values = _padded([_known(numbers.values, "values") for numbers in tokens])
    greedy = rescale(_greedy(groups))[keep] if rule.kind == "remax" else None
    outcomes = Outcomes(scores[keep], group_numbers[keep], mask, kl=divergence, values=values, greedy=greedy)
    estimate = estimate_advantages(outcomes, rule)
    samples = []
    for row, (sample, numbers) in enumerate(zip(blank, tokens, strict=True)):
        width = len(numbers.logprobs)
        returns = None if estimate.returns is None else estimate.returns[row, :width].float().numpy()
        advantages = estimate.advantages[row, :width].float().numpy()
        samples.append(PolicySample(sample.payload, sample.place, sample.length, advantages, returns, numbers))
    if divergence is None:
        return Experience(samples)
    total = float((divergence * mask).sum())
    return Experience(samples, total / max(float(mask.sum()), 1.0), total / len(samples), rule.kl_coef)


def teaches(group: ScoredGroup) -> bool:
    """Whether the answers of a group, the greedy one among them, were rewarded differently; else comparing them says
    nothing."""
    greedy = () if group.baseline is None else (group.baseline,)
    scores = torch.tensor((*group.rewards, *greedy), dtype=torch.float64)
    return not bool(flat_groups(scores, torch.zeros(len(scores), dtype=torch.int64)).all())


def _answers(groups: Sequence[ScoredGroup]) -> list[tuple[ScoredGroup, int]]:
    return [(group, place) for group in groups for place in range(len(group.rewards))]


def _scores(groups: Sequence[ScoredGroup]) -> tuple[Tensor, Tensor]:
    """Rewards [B] in float64 and the number of each answer's group [B]."""
    scores = [reward for group in groups for reward in group.rewards]
    numbers = [number for number, group in enumerate(groups) for _ in group.rewards]
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(numbers, dtype=torch.int64)


def _greedy(groups: Sequence[ScoredGroup]) -> Tensor:
    """Reward [B] of the greedy answer that each answer is compared with, float64."""
    if any(group.baseline is None for group in groups):
        raise ValueError("remax compares with greedy answers, and a group has none")
    return torch.tensor([group.baseline for group, _ in _answers(groups)], dtype=torch.float64)


def _sample(group: ScoredGroup, place: int, advantage: float) -> PolicySample:
    return PolicySample(group.payload, place, group.prompt_length + group.lengths[place], advantage)


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    """[B, T] float32, 0 behind each row."""
    padded = torch.zeros(len(rows), max((len(row) for row in rows), default=0))
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return padded


def _known(numbers: np.ndarray | None, what: str) -> np.ndarray:
    if numbers is None:
        raise ValueError(f"the policy gave no {what} for an answer's tokens")
    return numbers
