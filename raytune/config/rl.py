"""Reinforcement learning: ppo and grpo."""

from typing import ClassVar

from pydantic import Field

from raytune.config.base import Group


class RLConfig(Group):
    built: ClassVar[bool] = False

    ppo_buffer_size: int = Field(1, ge=1)
    """Batches of experience gathered before an update (ppo)."""
    ppo_epochs: int = Field(4, ge=1)
    """Passes over the experience per update (ppo)."""
    ppo_score_norm: bool = False
    """Scale rewards by their running spread (ppo)."""
    ppo_target: float = Field(6.0, gt=0)
    """Divergence that the adaptive coefficient aims at (ppo)."""
    ppo_whiten_rewards: bool = False
    """Bring rewards to mean 0 and spread 1 before advantages (ppo)."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of later rewards (ppo)."""
    lam: float = Field(0.95, ge=0, le=1)
    """Weight of longer looks ahead in the advantage (ppo)."""
    clip_range: float = Field(0.2, gt=0)
    """How far the probability ratio may move per update."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the divergence from the reference model (grpo)."""
    num_generations: int = Field(8, ge=2)
    """Answers per prompt that are compared with each other (grpo)."""
