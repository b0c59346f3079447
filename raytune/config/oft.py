"""Orthogonal adapters."""

from typing import ClassVar

from pydantic import Field

from raytune.config.base import Group, Names


class OftConfig(Group):
    built: ClassVar[bool] = False

    oft_rank: int = Field(0, ge=0)
    """Number of blocks per layer; 0 leaves it to oft_block_size."""
    oft_block_size: int = Field(32, ge=0)
    """Size of a block; 0 leaves it to oft_rank."""
    oft_target: Names = ("all",)
    """Modules that get an adapter, by name."""
    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the blocks that is left out in training."""
