"""What a rank learns by: the losses of policy and critic over one micro-batch, chosen by a run's rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from raytune.data.collate import Batch
from raytune.engine.base import Forward, Loss
from raytune.losses.kl import KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.policy import PolicyInputs, PolicyRule, policy_loss
from raytune.losses.reduce import MetricSums
from raytune.losses.sequences import Aggregation, token_weights
from raytune.losses.tokens import score_tokens
from raytune.losses.value import value_loss
from raytune.stages.policy_batch import Known, Micro


class Policy(Protocol):
    """What gives logits: an Engine or a FrozenModel."""

    def logits_of(self, batch: Batch) -> tuple[Tensor, Tensor]: ...


Role = Literal["policy", "actor_critic", "critic"]


# Made by launch from a run's config, read by every rank.
@dataclass(frozen=True, slots=True)
class LearnRule:
    """How a rank learns from answers.

    Args: role: "policy" has no critic, "actor_critic" a value head on the policy's trunk, "critic" is one by itself.
    kl: a divergence term of the loss. aggregation, fixed_length: as in token_weights. reference: have `values` tell
    the reference's log-probs too. value_coef: weight of the critic's loss beside the policy's.

    Example: LearnRule(kl=KLRule(coef=0.01))
    """

    role: Role = "policy"
    policy: PolicyRule = field(default_factory=PolicyRule)
    kl: KLRule | None = None
    corrections: tuple[Correction, ...] = ()
    aggregation: Aggregation = "token"
    fixed_length: int = 1
    reference: bool = False
    value_coef: float = 0.1
    value_clip: float | None = 0.2

    @property
    def kl_in_loss(self) -> bool:
        return self.kl is not None and self.kl.coef != 0 and self.role != "critic"

    @property
    def has_critic(self) -> bool:
        return self.role != "policy"


def build_loss(micro: Micro, known: Known, rule: LearnRule) -> Loss[MetricSums]:
    """The loss of one micro-batch. Divide it by `normaliser` over the mini-batch of all ranks.

    Where `known` lacks the old log-probs or values, those of this very pass stand in, without gradient: right for the
    only optimizer step on a rollout batch.
    """

    def loss(model: Forward, batch: Batch) -> MetricSums:
        match rule.role:
            case "policy":
                logits, numbers = model.logits_of(batch)
                return _policy(logits, numbers, micro, known, rule)
            case "critic":
                values, numbers = model.values_of(batch)
                return _critic(values, numbers, micro, known, rule)
            case "actor_critic":
                outputs = model.outputs_of(batch)
                assert outputs.values is not None
                policy = _policy(outputs.logits, outputs.labels, micro, known, rule)
                critic = _critic(outputs.values, outputs.labels, micro, known, rule)
                total = policy.loss + rule.value_coef * critic.loss
                return MetricSums(total, policy.count, {**policy.sums, **critic.sums}, policy.maxima)

    return loss


def logprobs_of(model: Policy, micro: Micro) -> Tensor:
    """Log-probs of a micro-batch's tokens under a model, in row order: [N]."""
    logits, numbers = model.logits_of(micro.batch)
    return micro.in_row_order(score_tokens(logits, micro.ids[numbers], temperature=micro.temperature).logprobs, numbers)


def values_of(model: Forward, micro: Micro) -> Tensor:
    """What the critic expects at each of a micro-batch's tokens, before it is known; in row order: [N]."""
    values, numbers = model.values_of(micro.batch)
    return micro.in_row_order(values, numbers)


def _policy(logits: Tensor, numbers: Tensor, micro: Micro, known: Known, rule: LearnRule) -> MetricSums:
    scores = score_tokens(
        logits,
        micro.ids[numbers],
        temperature=micro.temperature,
        train_entropy=rule.policy.entropy_coef != 0,
    )
    logprobs = micro.in_row_order(scores.logprobs, numbers)
    return policy_loss(
        PolicyInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if known.logprobs is None else known.logprobs,
            advantages=micro.advantages,
            weights=_weights(micro, rule),
            sequences=micro.sequences,
            ref_logprobs=known.reference,
            rollout_logprobs=micro.rollout_logprobs,
            entropies=micro.in_row_order(scores.entropies, numbers),
        ),
        rule=rule.policy,
        kl=rule.kl if rule.kl_in_loss else None,
        corrections=rule.corrections,
    )


def _critic(values: Tensor, numbers: Tensor, micro: Micro, known: Known, rule: LearnRule) -> MetricSums:
    if micro.returns is None and len(micro.ids):
        raise ValueError("a critic learns from returns, and these answers have none")
    values = micro.in_row_order(values, numbers)
    returns = values.detach() if micro.returns is None else micro.returns
    old = values.detach() if known.values is None else known.values
    return value_loss(values, old, returns, _weights(micro, rule), clip=rule.value_clip)


def _weights(micro: Micro, rule: LearnRule) -> Tensor:
    return token_weights(micro.sequences, rule.aggregation, fixed_length=rule.fixed_length)


def explained(means: Mapping[str, float]) -> dict[str, float]:
    """The share of the returns' variance that the critic explains, from the means of value_loss's metrics."""
    if "value_return" not in means:
        return {}
    variance = means["value_return_squared"] - means["value_return"] ** 2
    return {"value_explained": 1.0 - means["value_error"] / variance if variance > 0 else 0.0}
