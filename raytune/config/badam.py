"""BAdam: full training of one block of layers at a time."""

from typing import ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group


class BAdamConfig(Group):
    built: ClassVar[bool] = False

    use_badam: bool = False
    """Optimize with BAdam."""
    badam_mode: Literal["layer", "ratio"] = "layer"
    """Update a layer at a time, or a share of all weights."""
    badam_start_block: int | None = Field(None, ge=0)
    """First block to update."""
    badam_switch_mode: Literal["ascending", "descending", "random", "fixed"] | None = "ascending"
    """Order in which blocks take turns."""
    badam_switch_interval: int | None = Field(50, ge=-1)
    """Steps a block stays; -1 for ever."""
    badam_update_ratio: float = Field(0.05, ge=0, le=1)
    """Share of the weights that is updated."""
    badam_mask_mode: Literal["adjacent", "scatter"] = "adjacent"
    """Whether those weights lie together or apart."""
    badam_verbose: int = Field(0, ge=0, le=2)
    """How much BAdam says."""
