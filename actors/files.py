"""Folders between nodes that share no file system: through Ray's object store, in pieces of bounded size.

The driver's node holds the run's output, its checkpoints and the prepared data. A rank elsewhere reads them from, and
writes them to, one FileServer actor pinned to that node.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_PIECE = 64 * 1024 * 1024
_DEADLINE = 600.0


class FileServer:
    """Reads and writes files of the node it runs on."""

    def listing(self, folder: Path) -> list[tuple[str, int]]:
        """Relative name and size of every file below `folder`."""
        return [(str(p.relative_to(folder)), p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()]

    def read(self, path: Path, start: int) -> bytes:
        """At most one piece of a file, from byte `start`."""
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_PIECE)

    def write(self, path: Path, start: int, piece: bytes) -> None:
        """Put a piece at byte `start`; the folder is made when it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())


def start_file_server() -> Any:
    """Start the FileServer on this process's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(FileServer).options(num_cpus=0, scheduling_strategy=here, max_restarts=3, max_task_retries=3)
    return actor.remote()


def fetch_folder(server: Any, folder: Path) -> Path:
    """Copy a folder of the server's node into a temporary folder of this node and return it."""
    local = Path(tempfile.mkdtemp(prefix="raytune-"))
    for name, size in ray.get(server.listing.remote(folder), timeout=_DEADLINE):
        target = local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for start in range(0, size, _PIECE):
                file.write(ray.get(server.read.remote(folder / name, start), timeout=_DEADLINE))
    return local


def send_folder(server: Any, folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder here, then copy what it wrote into `folder` on the server's node."""
    local = Path(tempfile.mkdtemp(prefix="raytune-"))
    try:
        fill(local)
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            _send_file(server, path, folder / path.relative_to(local))
    finally:
        shutil.rmtree(local, ignore_errors=True)


def _send_file(server: Any, source: Path, target: Path) -> None:
    size = source.stat().st_size
    with source.open("rb") as file:
        for start in range(0, max(size, 1), _PIECE):
            ray.get(server.write.remote(target, start, file.read(_PIECE)), timeout=_DEADLINE)
