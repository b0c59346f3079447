"""How far the policy is from a reference, estimated from the log-probability of the token that was drawn.

With d = log pi - log pi_ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. In a reward each is as good as its variance.
In a loss only the gradient counts, and there k1 has none in expectation and k3 that of another divergence, unless the
term that comes from drawing the token itself is put back (`gradient`).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
KLGradient = Literal["plain", "ratio", "policy_ratio"]


@dataclass(frozen=True, slots=True)
class KLRule:
    """A divergence term.

    Args: coef: its weight. estimator: see above. gradient: "plain" differentiates the estimate alone; "ratio" puts the
    score-function term back, by the token's own importance ratio; "policy_ratio" takes the ratio of the policy loss
    instead, which is not the token's own where whole answers are weighed. clamp_input: largest |d| that k3 sees, which
    keeps exp in range; a token beyond has no gradient and is counted. clamp_output: largest estimate; None for none,
    because a clamped estimate stops pulling exactly where the policy has strayed furthest (at 10, k3 lets go below
    d = -2.61).
    """

    coef: float = 0.0
    estimator: KLEstimator = "k3"
    gradient: KLGradient = "plain"
    clamp_input: float | None = 20.0
    clamp_output: float | None = None


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, rule: KLRule) -> Tensor:
    """Estimate the reverse KL divergence per token.

    Args: log-probs of the drawn tokens, any shape, in nats; the gradient flows through `logprobs`.
    Returns: the same shape, in nats.
    Source: Schulman 2020, "Approximating KL Divergence".
    """
    delta = logprobs - ref_logprobs
    match rule.estimator:
        case "k1":
            estimate = delta
        case "k2":
            estimate = delta.square() / 2
        case "k3":
            bounded = delta if rule.clamp_input is None else delta.clamp(-rule.clamp_input, rule.clamp_input)
            estimate = torch.expm1(-bounded) + bounded
    if rule.clamp_output is None:
        return estimate
    return estimate.clamp(-rule.clamp_output, rule.clamp_output)


def kl_in_loss(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor, rule: KLRule) -> Tensor:
    """The estimate as a term of the loss, with the gradient that the rule asks for.

    d/dtheta E[k] = E[dk/dtheta + k * dlog pi/dtheta]. The second part, the score-function term, comes from drawing
    from the policy that is being moved. With it k1 and k3 both have the gradient of the reverse KL, d * dlog pi/dtheta
    in expectation, which k2 has without it. Only the token's own draw counts, not its effect on later tokens.

    Args: log-probs [N]. ratio: [N] importance ratio with gradient: of the tokens for "ratio", of the policy loss for
    "policy_ratio"; otherwise not read.
    Returns: [N], not yet weighted by `coef`.
    Source: Tang and Munos 2025 (arXiv 2506.09477); DeepSeek-V3.2, section 3.1 for "ratio".
    """
    estimate = kl_estimate(logprobs, ref_logprobs, rule)
    match rule.gradient:
        case "plain":
            return estimate
        case "ratio" | "policy_ratio":
            return estimate * ratio


def kl_saturated(logprobs: Tensor, ref_logprobs: Tensor, rule: KLRule) -> Tensor:
    """Tokens whose estimate a clamp has cut, and which therefore have no gradient: a bool for each."""
    delta = (logprobs - ref_logprobs).detach()
    cut = torch.zeros_like(delta, dtype=torch.bool)
    if rule.estimator == "k3" and rule.clamp_input is not None:
        cut |= delta.abs() > rule.clamp_input
    if rule.clamp_output is not None:
        cut |= kl_estimate(delta, torch.zeros_like(delta), replace(rule, clamp_output=None)).abs() > rule.clamp_output
    return cut


@dataclass(frozen=True, slots=True)
class KLControl:
    """A coefficient that follows the divergence. It goes into checkpoints.

    Args: coef: today's weight. target: divergence aimed at, in nats per answer (`ppo_target`). horizon: answers over
    which a full error changes the weight by 20 %.

    Example: KLControl(coef=0.2, target=6.0, horizon=10_000)
    """

    coef: float = 0.2
    target: float = 6.0
    horizon: float = 10_000


def update_kl_control(control: KLControl, observed: float, num_answers: int) -> KLControl:
    """Raise the weight when the policy strays further than the target, lower it when it stays closer.

    Args: observed: mean over answers of the estimates summed over their tokens, in nats. num_answers: answers since
    the last update.
    Source: Ziegler et al. 2019, section 2.2.
    """
    error = min(max(observed / control.target - 1.0, -0.2), 0.2)
    return replace(control, coef=control.coef * (1.0 + error * num_answers / control.horizon))
