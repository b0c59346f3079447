"""Inference engines: vLLM and SGLang."""

from typing import Annotated, Any, Literal

from pydantic import Field

from raytune.config.base import Group, NotBuilt
from raytune.config.cluster import Mapping


class RolloutConfig(Group):
    vllm_maxlen: int = Field(4096, ge=1)
    """Most tokens of prompt and answer together in a rollout replica."""
    vllm_gpu_util: float = Field(0.7, gt=0, lt=1)
    """Share of a GPU's memory that vLLM takes."""
    vllm_enforce_eager: bool | None = None
    """Do not compile the model or capture CUDA graphs; the default on a CPU, where compiling takes a minute."""
    vllm_max_lora_rank: Annotated[int, NotBuilt()] = Field(32, ge=1)
    """Largest rank of adapters."""
    vllm_config: Mapping | None = None
    """Further engine arguments of vLLM: a mapping, or one as JSON."""
    sglang_maxlen: Annotated[int, NotBuilt()] = Field(4096, ge=1)
    """Longest prompt and answer together, in tokens."""
    sglang_mem_fraction: Annotated[float, NotBuilt()] = Field(0.7, gt=0, lt=1)
    """Share of a GPU's memory that SGLang takes."""
    sglang_tp_size: Annotated[int, NotBuilt()] = Field(-1, ge=-1)
    """GPUs that share the model; -1 is all."""
    sglang_config: Annotated[dict[str, Any] | str | None, NotBuilt()] = None
    """Further arguments of SGLang."""
    sglang_lora_backend: Annotated[Literal["triton", "flashinfer"], NotBuilt()] = "triton"
    """Kernels of adapters in SGLang."""
