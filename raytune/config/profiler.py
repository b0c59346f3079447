"""Traces of where the time goes."""

from typing import ClassVar

from pydantic import Field

from raytune.config.base import Group, Names


class ProfilerConfig(Group):
    built: ClassVar[bool] = False

    enable_torch_profiler: bool = False
    """Record traces with torch.profiler."""
    profiler_output_dir: str | None = None
    """Folder of the traces."""
    profiler_wait_steps: int = Field(1, ge=0)
    """Steps left out at the start of a cycle."""
    profiler_warmup_steps: int = Field(1, ge=0)
    """Steps run but not kept after those."""
    profiler_active_steps: int = Field(1, ge=1)
    """Steps recorded after those."""
    profiler_repeat: int = Field(1, ge=0)
    """Cycles; 0 is until the end."""
    profiler_record_shapes: bool = True
    """Record the shapes of tensors."""
    profiler_profile_memory: bool = True
    """Record memory."""
    profiler_with_stack: bool = True
    """Record the Python stack."""
    profile_modules: Names = ()
    """Modules to time with CUDA events, by pattern."""
