"""The rollout engine's log-probabilities against the trainer's: how far apart, and what to do about it.

Both compute the same model with other kernels and another precision, so tokens were not drawn from quite the policy
that the ratio's denominator names. The weight pi_trainer / pi_rollout mends the expectation; a bound keeps its
variance down. Where the rollout log-probs stand in as the denominator themselves (no second forward pass), this
weight is already in the ratio and must not be applied again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raytune.losses.reduce import largest
from raytune.losses.sequences import Sequences

LOG_WEIGHT_BOUND = 20.0
"""Largest |log weight|: exp stays finite, and no useful bound lies further out."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One rule for the weight w = pi_trainer / pi_rollout.

    Args: level: w of each "token", the product over its "sequence", or their "geometric" mean. action: outside the
    bounds "truncate" to the nearest bound, "mask" to 0 while weights inside stay as they are, or "reject" to 0 while
    weights inside become 1. low, high: bounds, inclusive; None for none.

    Example: Correction("token", "truncate", high=2.0)      # truncated importance sampling
    Example: Correction("token", "mask", low=0.5, high=5.0)      # IcePop
    Example: Correction("sequence", "mask", high=3.0)      # an answer counts whole or not at all
    """

    level: Literal["token", "sequence", "geometric"] = "token"
    action: Literal["truncate", "mask", "reject"] = "truncate"
    low: float | None = None
    high: float | None = 2.0


@dataclass(frozen=True, slots=True)
class Corrected:
    """Args: weights: [N] factor of each token's policy loss, no gradient. outside: [N] bool, a bound was passed."""

    weights: Tensor
    outside: Tensor


def rollout_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, sequences: Sequences, rules: Sequence[Correction]
) -> Corrected:
    """Weights for tokens that another engine drew; several rules multiply.

    A token whose rollout log-prob is NaN (the engine could not score it) counts as equal. Tokens of weight 0 stay in
    the loss's normaliser: it was fixed before anybody knew the weights.

    Args: log-probs [N] in nats, of the same weights of the model: the trainer's and the engine's.
    Source: Yao et al. 2025 ("Your Efficient RL Framework Secretly Brings You Off-Policy RL Training") for truncation;
    Ling Team 2025 for IcePop's mask.
    """
    delta = log_gap(old_logprobs, rollout_logprobs)
    weights = torch.ones_like(delta)
    outside = torch.zeros_like(delta, dtype=torch.bool)
    for rule in rules:
        weight = _level(delta, sequences, rule).clamp(-LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND).exp()
        low = -torch.inf if rule.low is None else rule.low
        high = torch.inf if rule.high is None else rule.high
        beyond = (weight < low) | (weight > high)
        match rule.action:
            case "truncate":
                weight = weight.clamp(low, high)
            case "mask":
                weight = weight.masked_fill(beyond, 0.0)
            case "reject":
                weight = (~beyond).to(weight.dtype)
        weights, outside = weights * weight, outside | beyond
    return Corrected(weights, outside)


def log_gap(old_logprobs: Tensor, rollout_logprobs: Tensor) -> Tensor:
    """log pi_trainer - log pi_rollout [N], without gradient; 0 where the engine's is NaN."""
    return torch.nan_to_num((old_logprobs - rollout_logprobs).detach(), nan=0.0)


def mismatch_metrics(old_logprobs: Tensor, rollout_logprobs: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums and maxima over [N] tokens of the gap x = log pi_trainer - log pi_rollout.

    mismatch_abs is |x|; mismatch_k3 is e^x - x - 1, which estimates KL(rollout || trainer) and should stay below
    1e-3; mismatch_prob is e^|x|, the factor between the probabilities, accepted up to 1.05. All are means once divided
    by the number of tokens. mismatch_unknown counts the tokens that the engine could not score.
    """
    gap = log_gap(old_logprobs, rollout_logprobs)
    bounded = gap.clamp(-LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND)
    sums = {
        "mismatch_abs": gap.abs().sum(),
        "mismatch_k3": (torch.expm1(bounded) - bounded).sum(),
        "mismatch_prob": bounded.abs().exp().sum(),
        "mismatch_unknown": rollout_logprobs.isnan().sum().to(gap.dtype),
    }
    return sums, {"mismatch_abs_max": largest(gap.abs())}


def _level(delta: Tensor, sequences: Sequences, rule: Correction) -> Tensor:
    match rule.level:
        case "token":
            return delta
        case "sequence":
            return sequences.spread(sequences.sums(delta))
        case "geometric":
            return sequences.spread(sequences.means(delta))
