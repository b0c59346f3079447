"""Connect to a Ray cluster, or start one on this machine for the length of the run."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.placement import NodeShape
from raytune.config.cluster import ClusterConfig
from raytune.errors import PlacementError
from raytune.log import get_logger

log = get_logger(__name__)

# Ranks on one machine without a cluster beyond which a number is taken for a slip, not a wish.
_LOCAL_CPUS_PER_CORE = 8
# Ray sets it for what `ray job submit` runs, and copies its working directory into folders of this name.
_JOB, _COPIES = "RAY_JOB_CONFIG_JSON_ENV_VAR", "working_dir_files"
# A cluster that is told to end says farewell to its driver first.
_FAREWELL = 0.3
_END_DEADLINE = 30.0


@contextmanager
def connected(cfg: ClusterConfig, *, cpus: float) -> Iterator[None]:
    """Connect to the cluster that `ray_address` or Ray's environment names, else start one that ends with the block.

    Args: cpus: logical CPUs a local cluster needs at least; Ray counts them and does not measure them.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, **(cfg.ray_init_kwargs or {})}
    address = named_cluster(cfg)
    if ray.is_initialized():
        yield
    elif address:
        with _signals_wait():
            _connect(address, options)
        yield
    else:
        # Without "local" Ray would join whatever cluster somebody started on this machine.
        local: dict[str, Any] = {"num_cpus": local_node(cfg, cpus=cpus).cpus, "include_dashboard": False}
        before, started = set(psutil.Process().children()), set[psutil.Process]()
        try:
            try:
                with _signals_wait():
                    ray.init("local", **(local | options))
            finally:
                # Children that come later, such as a monitor's, are not Ray's.
                started = set(psutil.Process().children()) - before
            yield
        finally:
            _end_local(started)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM of this block are handled after it, by what handled them before: half of Ray ends in a crash.

    Processes that are started in the block, and theirs, never get SIGTERM. It often goes to a whole group (`timeout`,
    batch systems): Ray would be gone before the driver has saved. Of Ctrl-C Ray itself keeps them free, in this way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def catch(number: int, _frame: object) -> None:
        log.info("stopping as soon as Ray has started")
        caught.append(number)

    handlers = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # SIGTERM's is Ray's by now, which knows nothing of saving
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number in caught[:1]:
        signal.raise_signal(number)


def _end_local(processes: set[psutil.Process]) -> None:
    """End the cluster of this process. Ray asks each process by SIGTERM, which none gets, and would wait for each."""
    ending = threading.Thread(target=_kill_after_farewell, args=(processes,), daemon=True)
    ending.start()
    ray.shutdown()
    ending.join(timeout=_END_DEADLINE)


def _kill_after_farewell(processes: set[psutil.Process]) -> None:
    deadline = time.monotonic() + _END_DEADLINE
    while ray.is_initialized() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(_FAREWELL)
    families = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            families += process.children(recursive=True)
    for process in families:
        with suppress(psutil.NoSuchProcess):
            process.kill()


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
            fix="Lower num_workers, num_rollouts or cpus_per_worker, or name a cluster with ray_address.",
        )
    given = cfg.ray_init_kwargs or {}
    cpus = given.get("num_cpus", max(cores, math.ceil(cpus)))
    return NodeShape("this machine", cpus, given.get("num_gpus", gpus), psutil.virtual_memory().available)


def _connect(address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise PlacementError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            fix="Start one with `ray start --head`, or remove ray_address to run on this machine.",
        ) from None
