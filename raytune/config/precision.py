"""In which numbers the model computes and what it trades for memory."""

from typing import Annotated, Any, Literal

from raytune.config.base import Group, NotBuilt


class PrecisionConfig(Group):
    bf16: bool = False
    """Compute in bfloat16 and keep trainable weights in float32."""
    fp16: bool = False
    """Compute in float16 with a loss scaler and keep trainable weights in float32."""
    pure_bf16: bool = False
    """Keep everything in bfloat16, trainable weights and optimizer states too."""
    tf32: bool | None = None
    """Let float32 products use TF32 on the GPUs that have it; null is torch's own choice."""
    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Type of the weights for chat and export; auto is the model's own."""
    bf16_full_eval: Annotated[bool, NotBuilt()] = False
    """Evaluate wholly in bfloat16."""
    fp16_full_eval: Annotated[bool, NotBuilt()] = False
    """Evaluate wholly in float16."""
    upcast_layernorm: bool = False
    """Keep the weights of normalisation layers in float32."""
    upcast_lmhead_output: bool = False
    """Take the loss from float32 logits."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass to save memory; auto turns it on when they would not fit."""
    gradient_checkpointing_kwargs: Annotated[dict[str, Any] | None, NotBuilt()] = None
    """Arguments for torch's checkpoint function."""
    torch_compile: Annotated[bool, NotBuilt()] = False
    """Compile the model with torch.compile."""
    torch_compile_backend: Annotated[str | None, NotBuilt()] = None
    """Backend of torch.compile."""
    torch_compile_mode: Annotated[str | None, NotBuilt()] = None
    """Mode of torch.compile."""
    fp8: Annotated[bool, NotBuilt()] = False
    """Multiply matrices in 8-bit floats (Hopper GPUs and later)."""
    fp8_backend: Annotated[Literal["auto", "torchao", "te", "msamp"], NotBuilt()] = "auto"
    """Library for 8-bit products."""
    fp8_enable_fsdp_float8_all_gather: Annotated[bool, NotBuilt()] = False
    """Gather sharded weights in 8 bits."""
