"""KTransformers: experts on the CPU, the rest on a GPU."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group


class KTConfig(Group):
    built: ClassVar[bool] = False

    use_kt: bool = False
    """Train mixture-of-experts models with KTransformers."""
    kt_config: dict[str, Any] | str | None = None
    """Further KTransformers settings."""
    kt_cpu_activation: Literal["retain", "recompute"] | None = None
    """What becomes of the experts' activations on the CPU."""
    kt_weight_path: str | None = None
    """Experts quantized to 8 bits beforehand."""
    kt_non_expert_weight_path: str | None = None
    """Cache of the other weights in bfloat16."""
    kt_expert_checkpoint_path: str | None = None
    """Experts to convert while loading."""
    kt_use_lora_experts: bool | None = None
    """Put adapter experts on the GPU."""
    kt_lora_expert_num: int | None = Field(None, ge=1)
    """Number of adapter experts."""
    kt_lora_expert_intermediate_size: int | None = Field(None, ge=1)
    """Width of adapter experts."""
