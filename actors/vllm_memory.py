"""Shared memory through which the workers of an engine talk: named files, which nobody deletes after a kill."""

from collections.abc import Iterable
from pathlib import Path

import psutil

_FOLDER = Path("/dev/shm")
# Queues between core and workers; on a CPU, buffers of their collectives.
_NAMES = ("psm_", "vllm_dist_")


def give_up_names(processes: Iterable[psutil.Process]) -> list[Path]:
    """Delete the names of what these processes have mapped; the memory lasts as long as they do.

    An engine that is ready has mapped all of it. Its own deletion later finds the names gone; most are killed before.
    """
    mapped = {Path(one.path) for process in processes for one in process.memory_maps()}
    named = [path for path in mapped if path.parent == _FOLDER and path.name.startswith(_NAMES) and path.exists()]
    for path in named:
        path.unlink(missing_ok=True)
    return named
