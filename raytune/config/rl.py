"""Reinforcement learning: ppo and grpo."""

from pydantic import Field

from raytune.config.base import Group


class RLConfig(Group):
    ppo_buffer_size: int = Field(1, ge=1)
    """Batches of experience gathered before an update."""
    ppo_epochs: int = Field(4, ge=1)
    """Passes over the experience per update; by default 1 in grpo."""
    ppo_score_norm: bool = False
    """Bring answers' rewards to mean 0 and spread 1 by those of all steps so far (ppo)."""
    ppo_target: float | None = Field(6.0, gt=0)
    """Divergence that the adaptive coefficient of the KL penalty aims at (ppo); null keeps kl_coef as it is."""
    ppo_whiten_rewards: bool = False
    """Bring tokens' rewards, less the divergence, to spread 1 within the step, around their mean (ppo with gae)."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of later rewards."""
    lam: float = Field(0.95, ge=0, le=1)
    """Weight of longer looks ahead in the advantage (gae)."""
    clip_range: float = Field(0.2, gt=0)
    """How far the probability ratio may move per update."""
    value_clip: float = Field(0.2, gt=0)
    """How far the critic may move per update (ppo)."""
    vf_coef: float = Field(0.1, ge=0)
    """Weight of the critic's loss beside the policy's, with which it shares the trunk (ppo)."""
    kl_coef: float = Field(0.2, ge=0)
    """Weight of the divergence from the reference model; by default 0 in grpo."""
    num_generations: int = Field(1, ge=1)
    """Answers per prompt; by default 8 in grpo, where they are compared with each other."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimizer steps per pass over the experience."""
    dynamic_sampling: bool = False
    """Replace groups whose answers were all rewarded alike by further prompts, since they teach nothing (DAPO)."""
    max_sampling_rounds: int = Field(10, ge=1)
    """Prompts that dynamic sampling may draw, as a multiple of the batch."""
    transcript_steps: int = Field(10, ge=1)
    """Steps between samples of prompts and answers in the log."""
    max_rank_restarts: int = Field(3, ge=0)
    """Times in a row that lost trainer ranks are replaced, from the last checkpoint on; 0 ends the run at once."""
    environment: str | None = None
    """Class of a conversation partner, as package.module:Class or file.py:Class: tools, or a user with more to say."""
    max_turns: int = Field(8, ge=1)
    """Turns that the policy may take in one conversation (environment)."""
    environment_time_limit: float = Field(60.0, gt=0)
    """Seconds of a reset or step of the environment; an answer whose environment takes longer has no reward."""
