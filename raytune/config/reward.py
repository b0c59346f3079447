"""What scores an answer."""

from typing import ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group, Names


class RewardConfig(Group):
    built: ClassVar[bool] = False

    reward_model: str | None = None
    """Reward model: a path, a hub id, or a URL with reward_model_type api."""
    reward_model_type: Literal["lora", "full", "api"] = "lora"
    """Whether it is an adapter, a whole model or a server."""
    reward_model_adapters: Names = ()
    """Adapters of the reward model."""
    reward_model_quantization_bit: int | None = Field(None, ge=1, le=8)
    """Bits per weight of the reward model."""
