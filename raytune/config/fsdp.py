"""Details of sharding with fsdp2."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raytune.config.base import Group, NotBuilt

STRATEGIES = {"1": "full_shard", "2": "shard_grad_op", "3": "no_shard", "4": "hybrid_shard", "5": "hybrid_shard_zero2"}


def strategy_name(value: Any) -> Any:
    """PyTorch's and Accelerate's spellings, numbers included, become one."""
    return STRATEGIES.get(str(value), value.lower() if isinstance(value, str) else value)


class FsdpConfig(Group):
    fsdp: Annotated[str | None, NotBuilt()] = None
    """Hugging Face's words for ways of sharding, other than full_shard and auto_wrap, which are engine fsdp2."""
    fsdp_size: int | None = Field(None, ge=1)
    """Ranks that share one copy of the weights; must equal num_workers."""
    fsdp_sharding_strategy: Annotated[
        Literal["full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2"],
        BeforeValidator(strategy_name),
        NotBuilt(("shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2")),
    ] = "full_shard"
    """What is sharded: weights, gradients and optimizer states, or less."""
    fsdp_cpu_offload: Annotated[bool, NotBuilt()] = False
    """Keep shards on the host between uses."""
    fsdp_activation_checkpointing: Annotated[bool, NotBuilt()] = False
    """Let the sharding recompute activations; gradient_checkpointing is the key for it."""
