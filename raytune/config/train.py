"""The run: stage, batches, length, randomness."""

from typing import Annotated

from pydantic import Field

from raytune.config.base import Group, NotBuilt
from raytune.types import Stage


class TrainConfig(Group):
    stage: Annotated[Stage, NotBuilt(("dpo", "kto", "ppo", "grpo"))] = "sft"
    """Algorithm: pre-training, supervised, reward model, preference (dpo, kto) or reinforcement (ppo, grpo)."""
    do_train: bool | None = None
    """Train; null is true unless do_eval or do_predict alone is asked for."""
    do_eval: bool = False
    """Evaluate once more at the end; alone: only evaluate."""
    do_predict: Annotated[bool, NotBuilt()] = False
    """Generate answers for the evaluation rows at the end."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Rows in one forward pass of one rank."""
    per_device_eval_batch_size: int = Field(8, ge=1)
    """Rows in one forward pass of one rank while evaluating."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Forward passes per optimizer step."""
    global_batch_size: int | None = Field(None, ge=1)
    """Rows per optimizer step over all ranks; replaces gradient_accumulation_steps."""
    max_tokens_per_batch: int | None = Field(None, ge=1)
    """Cut forward passes by tokens instead of rows: at most so many per rank, padding included."""
    auto_find_batch_size: Annotated[bool, NotBuilt()] = False
    """Halve the batch until it fits."""
    num_train_epochs: float = Field(3.0, gt=0)
    """Passes over the data."""
    max_steps: int = Field(-1, ge=-1)
    """Optimizer steps; above 0 it replaces num_train_epochs."""
    group_by_length: bool = False
    """Batch rows of similar length together."""
    disable_shuffling: bool = False
    """Keep the rows in their order."""
    seed: int = Field(42, ge=0)
    """Seed of everything random."""
    data_seed: int | None = Field(None, ge=0)
    """Seed of the order of rows; null is seed."""
    full_determinism: bool = False
    """Use deterministic kernels only, at the price of speed."""
    neftune_noise_alpha: float | None = Field(None, ge=0)
    """Noise on the embeddings in training, of size alpha / sqrt(tokens x width)."""
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over the vocabulary."""
