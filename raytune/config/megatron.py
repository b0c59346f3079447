"""Megatron's fusions, overlaps and recomputation."""

from typing import ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group


class MegatronConfig(Group):
    built: ClassVar[bool] = False

    recompute_granularity: Literal["full", "selective"] | None = None
    """How much of the activations is recomputed."""
    recompute_method: Literal["uniform", "block"] | None = None
    """Which layers are recomputed."""
    recompute_num_layers: int | None = Field(None, ge=1)
    """Layers per recomputed unit."""
    bias_activation_fusion: bool | None = None
    """Fuse bias and activation."""
    apply_rope_fusion: bool | None = None
    """Fuse rotary positions."""
    masked_softmax_fusion: bool | None = None
    """Fuse mask and softmax."""
    cross_entropy_loss_fusion: bool | None = None
    """Fuse the loss."""
    moe_grouped_gemm: bool | None = None
    """Multiply all experts at once."""
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] | None = None
    """How tokens travel to experts."""
    calculate_per_token_loss: bool | None = None
    """Normalise the loss by tokens."""
    use_distributed_optimizer: bool = True
    """Shard the optimizer states."""
    overlap_param_gather: bool = True
    """Gather weights while computing."""
    overlap_grad_reduce: bool = True
    """Reduce gradients while computing."""
    use_packed_sequences: bool = False
    """Pack sequences for sft."""
    mixed_precision: str = "bf16_mixed"
    """Megatron's precision recipe."""
