"""Connect to a Ray cluster, or start one on this machine for the length of the run."""

import logging
import math
import os
from typing import Any

import ray

from raytune.config.cluster import ClusterConfig
from raytune.errors import PlacementError

# Ranks on one machine without a cluster beyond which a number is taken for a slip, not a wish.
_LOCAL_CPUS_PER_CORE = 8


def connect(cfg: ClusterConfig, *, cpus: float) -> bool:
    """Connect to the cluster that `ray_address` or Ray's own environment names, else start a local one.

    Args: cpus: logical CPUs a local cluster needs at least; Ray counts them and does not measure them.
    Returns: whether a local cluster was started (and should be ended).
    """
    if ray.is_initialized():
        return False
    address = cfg.ray_address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **(cfg.ray_init_kwargs or {})}
    if address:
        _connect(address, options)
        return False
    cores = os.cpu_count() or 1
    if cpus > cores * _LOCAL_CPUS_PER_CORE:
        raise PlacementError(
            f"the run needs {cpus:g} CPUs, this machine has {cores}",
            fix="Lower num_workers or cpus_per_worker, or name a cluster with ray_address.",
        )
    # Without "local" Ray would join whatever cluster somebody started on this machine.
    local: dict[str, Any] = {"num_cpus": max(cores, math.ceil(cpus)), "include_dashboard": False}
    ray.init("local", **(local | options))
    return True


def _connect(address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise PlacementError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            fix="Start one with `ray start --head`, or remove ray_address to run on this machine.",
        ) from None
