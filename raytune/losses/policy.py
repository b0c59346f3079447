"""The policy loss: raise the log-probability of tokens that did better than expected, but not too far in one step.

log-probs now and when drawn -> ratio (a token's or its answer's) -> clip -> times advantage
                               + divergence from the reference - entropy -> weighted sum over tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raytune.losses.kl import KLRule, kl_in_loss, kl_saturated
from raytune.losses.mismatch import Correction, mismatch_metrics, rollout_weights
from raytune.losses.reduce import MetricSums, largest
from raytune.losses.sequences import Sequences

RatioLevel = Literal["token", "sequence", "sequence_token", "sequence_product"]


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """How far a step may go.

    Args: ratio: "token"; "sequence" is the geometric mean over the answer (GSPO); "sequence_token" has its value but
    each token's own gradient (GSPO-token), "sequence_product" is the answer's probability ratio (RLOO).
    clip: "ppo" stops the gradient outside the bounds; "cispo" clips the ratio as a constant weight and keeps the
    gradient of every token. clip_low, clip_high: bounds 1 - clip_low and 1 + clip_high, None for none; unequal ones
    are clip-higher (DAPO). dual_clip: for negative advantages the loss stops at this multiple, > 1, None for off.
    ratio_cap: bound on the ratio before clipping, either sign, None for off. log_ratio_clamp: largest |log ratio|,
    which keeps exp finite; a token beyond has no gradient. entropy_coef: weight of the entropy bonus.
    """

    ratio: RatioLevel = "token"
    clip: Literal["ppo", "cispo"] = "ppo"
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    dual_clip: float | None = None
    ratio_cap: float | None = None
    log_ratio_clamp: float | None = 20.0
    entropy_coef: float = 0.0


# Made by a stage from a micro-batch and its experience, read by policy_loss.
@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """N tokens that the policy produced, in row order; every tensor [N], float32 or wider, log-probs in nats.

    Args: logprobs: of the policy being trained, with gradient. old_logprobs: of the policy at the start of the step.
    advantages: in reward units. weights: from token_weights. ref_logprobs: of the reference, for a KL term.
    rollout_logprobs: of the engine that drew the tokens, NaN where it could not say. entropies: with gradient if the
    rule wants a bonus.

    Example: PolicyInputs(logprobs, logprobs.detach(), advantages, weights, sequences)      # the first step on a batch
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    sequences: Sequences
    ref_logprobs: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    entropies: Tensor | None = None


def policy_loss(
    tokens: PolicyInputs, *, rule: PolicyRule, kl: KLRule | None = None, corrections: Sequence[Correction] = ()
) -> MetricSums:
    """Weighted sum over tokens of surrogate * rollout weight + coef * kl - entropy_coef * entropy.

    Divide it by `normaliser` over the global batch. No tokens give a loss of 0 that still reaches the weights, so
    that a rank without work can take part in collective operations.

    Metrics, counted per token: ratio, approx_kl, clip_low, clip_high, clip_dual; entropy, kl, kl_saturated,
    mismatch_* and correction* where their inputs are given; and the maxima ratio_max, mismatch_abs_max.
    """
    change = tokens.logprobs - tokens.old_logprobs
    ratio = importance_log_ratio(tokens.logprobs, tokens.old_logprobs, tokens.sequences, rule).exp()
    loss = surrogate(ratio, tokens.advantages, tokens.logprobs, rule)
    sums = _ratio_metrics(tokens, ratio.detach(), _clamped(change.detach(), rule), rule)
    maxima = {"ratio_max": largest(ratio)}
    if tokens.rollout_logprobs is not None:
        gaps, gap_maxima = mismatch_metrics(tokens.old_logprobs, tokens.rollout_logprobs)
        fixed = rollout_weights(tokens.old_logprobs, tokens.rollout_logprobs, tokens.sequences, corrections)
        loss = loss * fixed.weights
        counts = {"correction": fixed.weights.sum(), "correction_outside": fixed.outside.sum().to(loss.dtype)}
        sums |= gaps | (counts if corrections else {})
        maxima |= gap_maxima
    if tokens.ref_logprobs is not None and kl is not None:
        drawn = ratio if kl.gradient == "policy_ratio" else _clamped(change, rule).exp()
        penalty = kl_in_loss(tokens.logprobs, tokens.ref_logprobs, drawn, kl)
        loss = loss + kl.coef * penalty
        cut = kl_saturated(tokens.logprobs, tokens.ref_logprobs, kl)
        sums |= {"kl": penalty.detach().sum(), "kl_saturated": cut.sum().to(loss.dtype)}
    if tokens.entropies is not None:
        if rule.entropy_coef:
            loss = loss - rule.entropy_coef * tokens.entropies
        sums |= {"entropy": tokens.entropies.detach().sum()}
    return MetricSums((loss * tokens.weights).sum(), tokens.logprobs.numel(), sums, maxima)


def importance_log_ratio(logprobs: Tensor, old_logprobs: Tensor, sequences: Sequences, rule: PolicyRule) -> Tensor:
    """Log of the ratio that each token is weighed by.

    Args: log-probs [N] in nats.
    Returns: [N], with gradient.
    Source: Schulman et al. 2017, section 3 for tokens; Zheng et al. 2025 (GSPO), eq. 7 and 14 for answers.
    """
    change = logprobs - old_logprobs
    match rule.ratio:
        case "token":
            log_ratio = change
        case "sequence":
            log_ratio = sequences.spread(sequences.means(change))
        case "sequence_token":
            log_ratio = sequences.spread(sequences.means(change)).detach() + logprobs - logprobs.detach()
        case "sequence_product":
            log_ratio = sequences.spread(sequences.sums(change))
    return _clamped(log_ratio, rule)


def _clamped(log_ratio: Tensor, rule: PolicyRule) -> Tensor:
    if rule.log_ratio_clamp is None:
        return log_ratio
    return log_ratio.clamp(-rule.log_ratio_clamp, rule.log_ratio_clamp)


def surrogate(ratio: Tensor, advantages: Tensor, logprobs: Tensor, rule: PolicyRule) -> Tensor:
    """Loss of each token.

    With rho the ratio, A the advantage and c the dual clip:
        ppo      -min(rho * A, clip(rho) * A), and for A < 0 at most -c * A
        cispo    -clip(rho) * A * log pi, with clip(rho) a constant

    Args: ratio, advantages, logprobs: [N]; logprobs are read by cispo alone.
    Returns: [N].
    Source: Schulman et al. 2017, eq. 7; Yu et al. 2025 (DAPO), section 3.1 for clip-higher; Ye et al. 2020 for dual
    clip; MiniMax 2025 (MiniMax-M1), section 3.1 for CISPO.
    """
    low, high = _bounds(rule)
    match rule.clip:
        case "cispo":
            return -ratio.clamp(low, high).detach() * advantages * logprobs
        case "ppo":
            free = ratio if rule.ratio_cap is None else ratio.clamp(max=rule.ratio_cap)
            loss = torch.maximum(-free * advantages, -ratio.clamp(low, high) * advantages)
            if rule.dual_clip is None:
                return loss
            return torch.where(advantages < 0, torch.minimum(loss, -rule.dual_clip * advantages), loss)


def _bounds(rule: PolicyRule) -> tuple[float, float]:
    low = float("-inf") if rule.clip_low is None else 1.0 - rule.clip_low
    high = float("inf") if rule.clip_high is None else 1.0 + rule.clip_high
    return low, high


def _ratio_metrics(tokens: PolicyInputs, ratio: Tensor, change: Tensor, rule: PolicyRule) -> dict[str, Tensor]:
    """Sums over tokens. A token counts as clipped where the bound has taken its gradient (ppo) or cut its weight.

    Args: ratio: that tokens are weighed by. change: log ratio of each token by itself. Both [N], without gradient.
    """
    low, high = _bounds(rule)
    up, down = (tokens.advantages > 0, tokens.advantages < 0)
    if rule.clip == "cispo":
        up = down = tokens.advantages != 0
    dual = torch.zeros_like(down)
    if rule.clip == "ppo" and rule.dual_clip is not None:
        dual = down & (ratio > rule.dual_clip)
    return {
        "ratio": ratio.sum(),
        "approx_kl": (torch.expm1(change) - change).sum(),
        "clip_low": ((ratio < low) & down).sum().to(ratio.dtype),
        "clip_high": ((ratio > high) & up).sum().to(ratio.dtype),
        "clip_dual": dual.sum().to(ratio.dtype),
    }
