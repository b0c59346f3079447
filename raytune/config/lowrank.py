"""Optimizers that keep their states in a low-rank projection of the gradient: GaLore and APOLLO."""

from typing import ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group, Names


class LowRankConfig(Group):
    built: ClassVar[bool] = False

    use_galore: bool = False
    """Optimize with GaLore."""
    galore_target: Names = ("all",)
    """Modules that GaLore works on; `all` is every linear layer."""
    galore_rank: int = Field(16, ge=1)
    """Rank of the projection."""
    galore_update_interval: int = Field(200, ge=1)
    """Steps between two projections."""
    galore_scale: float = 2.0
    """Factor of the projected update."""
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"
    """Side of the projection."""
    galore_layerwise: bool = False
    """Update each layer inside the backward pass, to save its gradient."""
    use_apollo: bool = False
    """Optimize with APOLLO."""
    apollo_target: Names = ("all",)
    """Modules that APOLLO works on; `all` is every linear layer."""
    apollo_rank: int = Field(16, ge=1)
    """Rank of the projection."""
    apollo_update_interval: int = Field(200, ge=1)
    """Steps between two projections."""
    apollo_scale: float = 32.0
    """Factor of the projected update."""
    apollo_proj: Literal["svd", "random"] = "random"
    """How the projection is made."""
    apollo_proj_type: Literal["std", "right", "left"] = "std"
    """Side of the projection."""
    apollo_scale_type: Literal["channel", "tensor"] = "channel"
    """Whether a channel or a tensor has one learning rate."""
    apollo_layerwise: bool = False
    """Update each layer inside the backward pass, to save its gradient."""
    apollo_scale_front: bool = False
    """Limit the growth of the norm before scaling."""
