"""Connect to a Ray cluster, or start one on this machine for the length of the run."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import ray

from actors.placement import NodeShape
from raytune.config.cluster import ClusterConfig
from raytune.errors import PlacementError

# Ranks on one machine without a cluster beyond which a number is taken for a slip, not a wish.
_LOCAL_CPUS_PER_CORE = 8
# Ray sets it for what `ray job submit` runs, and copies its working directory into folders of this name.
_JOB, _COPIES = "RAY_JOB_CONFIG_JSON_ENV_VAR", "working_dir_files"


def connect(cfg: ClusterConfig, *, cpus: float) -> bool:
    """Connect to the cluster that `ray_address` or Ray's own environment names, else start a local one.

    Args: cpus: logical CPUs a local cluster needs at least; Ray counts them and does not measure them.
    Returns: whether a local cluster was started (and should be ended).
    """
    if ray.is_initialized():
        return False
    address = named_cluster(cfg)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **(cfg.ray_init_kwargs or {})}
    if address:
        _connect(address, options)
        return False
    # Without "local" Ray would join whatever cluster somebody started on this machine.
    local: dict[str, Any] = {"num_cpus": local_node(cfg, cpus=cpus).cpus, "include_dashboard": False}
    ray.init("local", **(local | options))
    return True


def named_cluster(cfg: ClusterConfig) -> str | None:
    """Address of the cluster to use; None when there is none but a local one."""
    return cfg.ray_address or os.environ.get("RAY_ADDRESS")


def is_in_jobs_copy(folder: Path) -> bool:
    """Whether `folder` lies in the copy of a submitted job's working directory, which Ray deletes after the job."""
    return _JOB in os.environ and folder.is_relative_to(Path.cwd()) and _COPIES in folder.parts


def local_node(cfg: ClusterConfig, *, cpus: float, gpus: float = 0) -> NodeShape:
    """This machine as the one node of a local cluster, with enough logical CPUs for `cpus`.

    Raises: PlacementError where that would be many times the cores there are.
    """
    cores = os.cpu_count() or 1
    if cpus > cores * _LOCAL_CPUS_PER_CORE:
        raise PlacementError(
            f"the run needs {cpus:g} CPUs, this machine has {cores}",
            fix="Lower num_workers or cpus_per_worker, or name a cluster with ray_address.",
        )
    given = cfg.ray_init_kwargs or {}
    return NodeShape("this machine", given.get("num_cpus", max(cores, math.ceil(cpus))), given.get("num_gpus", gpus))


def _connect(address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise PlacementError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            fix="Start one with `ray start --head`, or remove ray_address to run on this machine.",
        ) from None
