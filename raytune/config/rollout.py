"""Inference engines: vLLM and SGLang."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group


class RolloutConfig(Group):
    built: ClassVar[bool] = False

    vllm_maxlen: int = Field(4096, ge=1)
    """Longest prompt and answer together, in tokens."""
    vllm_gpu_util: float = Field(0.7, gt=0, lt=1)
    """Share of a GPU's memory that vLLM takes."""
    vllm_enforce_eager: bool = False
    """Run without CUDA graphs."""
    vllm_max_lora_rank: int = Field(32, ge=1)
    """Largest rank of adapters."""
    vllm_config: dict[str, Any] | str | None = None
    """Further arguments of vLLM."""
    sglang_maxlen: int = Field(4096, ge=1)
    """Longest prompt and answer together, in tokens."""
    sglang_mem_fraction: float = Field(0.7, gt=0, lt=1)
    """Share of a GPU's memory that SGLang takes."""
    sglang_tp_size: int = Field(-1, ge=-1)
    """GPUs that share the model; -1 is all."""
    sglang_config: dict[str, Any] | str | None = None
    """Further arguments of SGLang."""
    sglang_lora_backend: Literal["triton", "flashinfer"] = "triton"
    """Kernels of adapters in SGLang."""
