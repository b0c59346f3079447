"""Where well-known systems differ in numbers for the same formula, as one table (`rl_compat`).

A run that moves here from another system can keep its numbers; a new run uses "raytune". What is plainly a fault
elsewhere is not copied: advantages of equal rewards that float32 rounding makes large, returns that stop at tool
tokens, value targets that step through them, a spread of NaN for a lone answer, losses that depend on how the batch
was cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raytune.losses.advantage import GroupRule
from raytune.losses.kl import KLEstimator, KLGradient, KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.policy import PolicyRule, RatioLevel
from raytune.losses.sequences import Aggregation
from raytune.losses.whiten import WhitenRule

System = Literal["raytune", "verl", "openrlhf", "trl"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The defaults of one system.

    Args: group, whiten: numbers of the advantage. whiten_flat: groups of equal rewards take part in whitening.
    aggregation: of the policy loss. dual_clip: multiple, None for off. sequence_ratio: form of a whole answer's
    ratio. token_clamp, sequence_clamp: bound on |log ratio|, None for none. cispo_floor: CISPO clips from below too.
    cispo_absolute: its upper bound is `clip_high` itself, not 1 + clip_high. kl_estimator, kl_gradient: of the KL
    term. kl_clamp_input: of k3. kl_clamp_output: (estimator, bound) pairs. corrections: for rollouts from vLLM.
    rloo_answers: with advantage rloo an answer is one action: it has the probability ratio of the whole answer, all
    answers count alike whatever their length, and no rollout is corrected.
    """

    group: GroupRule
    whiten: WhitenRule
    aggregation: Aggregation = "token"
    whiten_flat: bool = True
    dual_clip: float | None = None
    sequence_ratio: RatioLevel = "sequence"
    token_clamp: float | None = 20.0
    sequence_clamp: float | None = None
    cispo_floor: bool = True
    cispo_absolute: bool = False
    kl_estimator: KLEstimator = "k3"
    kl_gradient: KLGradient = "plain"
    kl_clamp_input: float | None = None
    kl_clamp_output: tuple[tuple[KLEstimator, float], ...] = ()
    corrections: tuple[Correction, ...] = ()
    rloo_answers: bool = False


DIALECTS: Mapping[System, Dialect] = {
    "raytune": Dialect(
        group=GroupRule(),
        whiten=WhitenRule(),
        whiten_flat=False,
        sequence_clamp=20.0,
        cispo_floor=False,
        kl_gradient="ratio",
        kl_clamp_input=20.0,
    ),
    "verl": Dialect(
        group=GroupRule(eps=1e-6, lone="reward"),
        whiten=WhitenRule(ddof=1, eps=1e-8, guard="add"),
        dual_clip=3.0,
        sequence_ratio="sequence_token",
        sequence_clamp=10.0,
        kl_clamp_input=20.0,
        kl_clamp_output=(("k3", 10.0),),
    ),
    "openrlhf": Dialect(
        group=GroupRule(eps=1e-9),
        whiten=WhitenRule(ddof=0, eps=1e-8, guard="floor"),
        kl_clamp_output=(("k1", 10.0), ("k2", 10.0), ("k3", 10.0)),
    ),
    "trl": Dialect(
        group=GroupRule(eps=1e-4),
        whiten=WhitenRule(ddof=1, eps=1e-8, guard="add"),
        token_clamp=None,
        cispo_floor=False,
        cispo_absolute=True,
        kl_gradient="policy_ratio",
        corrections=(Correction("sequence", "mask", high=3.0),),
        rloo_answers=True,
    ),
}


def policy_rule(
    dialect: Dialect,
    *,
    clip_low: float,
    clip_high: float,
    level: Literal["token", "sequence", "product"] = "token",
    clip: Literal["ppo", "cispo"] = "ppo",
) -> PolicyRule:
    """A policy rule as a system reads its keys; a user's own dual clip, cap or entropy bonus go in by `replace`.

    Args: clip_low, clip_high: as the user wrote them, usually the distances of the bounds from 1. level: whose ratio:
    a token's, its answer's by the length of it (GSPO), or the answer's probability ratio.
    """
    cispo = clip == "cispo"
    ratios: dict[str, RatioLevel] = {
        "token": "token",
        "sequence": dialect.sequence_ratio,
        "product": "sequence_product",
    }
    return PolicyRule(
        ratio=ratios[level],
        clip=clip,
        clip_low=None if cispo and not dialect.cispo_floor else clip_low,
        clip_high=clip_high - 1.0 if cispo and dialect.cispo_absolute else clip_high,
        dual_clip=dialect.dual_clip,
        log_ratio_clamp=dialect.token_clamp if level == "token" else dialect.sequence_clamp,
    )


def kl_rule(dialect: Dialect, *, coef: float, estimator: KLEstimator | None = None) -> KLRule:
    """A divergence term as a system computes it.

    k2 is always differentiated as it is: that already gives the gradient of the reverse KL.

    Args: coef: its weight. estimator: the system's own by default.
    """
    chosen = estimator or dialect.kl_estimator
    return KLRule(
        coef=coef,
        estimator=chosen,
        gradient="plain" if chosen == "k2" else dialect.kl_gradient,
        clamp_input=dialect.kl_clamp_input,
        clamp_output=dict(dialect.kl_clamp_output).get(chosen),
    )
