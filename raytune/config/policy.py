"""Which algorithm reinforcement learning computes: each key is a switch of one formula."""

from typing import Literal

from pydantic import Field

from raytune.config.base import Group

Advantage = Literal[
    "gae",
    "group",
    "group_batch_std",
    "group_no_std",
    "leave_one_out",
    "rloo",
    "reinforce++",
    "reinforce++_baseline",
    "remax",
]
"""Estimators of the advantage, as in raytune.losses.estimate."""


class PolicyConfig(Group):
    rl_compat: Literal["raytune", "verl", "openrlhf", "trl"] = "raytune"
    """System whose numbers are kept where systems differ in the same formula."""
    advantage: Advantage = "gae"
    """Baseline of a reward: a critic (gae), by default in grpo the other answers (group), the likeliest one (remax)."""
    critic: Literal["shared", "own"] = "shared"
    """Whether the critic is a head on the policy's trunk, or a model of its own, begun as the reward model (gae)."""
    critic_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of a critic of its own; null is learning_rate."""
    ratio_level: Literal["token", "sequence"] | None = None
    """Whether the probability ratio is that of a token or of a whole answer (GSPO); null is rl_compat's."""
    clip_type: Literal["ppo", "cispo"] = "ppo"
    """Whether clipping stops the gradient, or bounds its weight only (CISPO)."""
    clip_range_high: float | None = Field(None, gt=0)
    """How far the ratio may rise; by default as far as it may fall (clip-higher of DAPO)."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound, as a multiple, of the loss of answers that were worse than expected; null is off."""
    loss_aggregation: Literal["token", "sequence", "fixed"] | None = None
    """Mean over tokens, over answers' means, or over answers' sums by a fixed length (Dr.GRPO); null is rl_compat's."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Estimator of the divergence; null is k1 in the reward and rl_compat's in the loss."""
    kl_in_reward: bool = True
    """Take the divergence off the reward instead of adding it to the loss; by default false in grpo."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the bonus for a broad distribution."""
    rollout_correction: Literal["off", "truncate", "mask", "reject"] | None = None
    """What is done where engine and trainer disagree on the probability of a drawn token; null is rl_compat's."""
    correction_level: Literal["token", "sequence", "geometric"] = "token"
    """Whether the disagreement of a token or of a whole answer counts."""
    correction_low: float | None = Field(None, gt=0)
    """Smallest ratio of the two probabilities that counts as agreement."""
    correction_high: float | None = Field(2.0, gt=0)
    """Largest ratio of the two probabilities that counts as agreement."""
