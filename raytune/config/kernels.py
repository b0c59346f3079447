"""Replacements for parts of the model's computation."""

from typing import ClassVar, Literal

from raytune.config.base import Group


class KernelConfig(Group):
    built: ClassVar[bool] = False

    enable_liger_kernel: bool = False
    """Use Liger's fused Triton kernels (CUDA)."""
    liger_kernel_config: dict[str, bool] | None = None
    """Which of Liger's kernels to use."""
    use_unsloth: bool = False
    """Use Unsloth's LoRA kernels (CUDA)."""
    use_unsloth_gc: bool = False
    """Use Unsloth's gradient checkpointing, which moves activations to the host."""
    shift_attn: bool = False
    """Shifted short attention of LongLoRA; for long contexts rope_scaling is the better way."""
    mixture_of_depths: Literal["convert", "load"] | None = None
    """Convert the model to mixture-of-depths, or load one that was converted."""
    moe_aux_loss_coef: float | None = None
    """Weight of the router's load-balancing loss in mixture-of-experts models."""
