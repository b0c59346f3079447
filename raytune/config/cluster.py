"""Where the ranks run and how they find each other."""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raytune.config.base import Group, NotBuilt


def json_mapping(value: Any) -> Any:
    """Read a mapping that was written as one line of JSON; anything else is left to the field's type."""
    if isinstance(value, str) and value.strip().startswith("{"):
        return json.loads(value)
    return value


Mapping = Annotated[dict[str, Any], BeforeValidator(json_mapping)]


class ClusterConfig(Group):
    engine: Annotated[Literal["auto", "single", "ddp", "fsdp2", "deepspeed"], NotBuilt(("deepspeed",))] = "auto"
    """How ranks share the work: alone, copies (ddp), or shards (fsdp2, deepspeed); auto is single or ddp."""
    num_workers: int = Field(1, ge=1)
    """Ranks of the trainer group over all nodes."""
    ray_address: str | None = None
    """Ray cluster to use; null is the one this process belongs to, or a local one that ends with the run."""
    ray_init_kwargs: Mapping | None = None
    """Further arguments of ray.init."""
    cpus_per_worker: float | None = Field(None, gt=0)
    """CPUs a rank reserves, and threads it computes with; null is its share of a node."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs a rank reserves; null is one where the cluster has any."""
    placement_timeout: float = Field(600, gt=0)
    """Seconds to wait for room on the cluster."""
    priority: int = 0
    """Runs of higher priority are placed first."""
    storage_path: str | None = None
    """Folder that all nodes see, for checkpoints and prepared rows of runs over several nodes."""
    master_addr: str | None = None
    """Address at which ranks meet; null is that of rank 0's node."""
    master_port: int | None = Field(None, ge=1, le=65535)
    """Port at which ranks meet; null is a free one."""
    ddp_timeout: float = Field(1800, gt=0)
    """Seconds after which a collective that does not end is an error."""
    ddp_backend: Literal["nccl", "gloo"] | None = None
    """Library of collectives; null is nccl on GPUs and gloo elsewhere."""
    ddp_find_unused_parameters: Annotated[bool | None, NotBuilt((True,))] = None
    """Look for parameters without a gradient in each step."""
    use_cpu: bool = False
    """Train on CPUs even where there are GPUs."""
    deepspeed: Annotated[Mapping | str | None, NotBuilt()] = None
    """DeepSpeed configuration: a JSON file or its content."""
    accelerator_config: Annotated[Mapping | str | None, NotBuilt()] = None
    """Settings of Hugging Face Accelerate; there is no Accelerate here."""
    parallelism_config: Annotated[Mapping | str | None, NotBuilt()] = None
    """Sizes of the axes of parallelism."""
