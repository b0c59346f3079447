"""Folders in shared memory: each belongs to a process, and those that killed runs left behind are given back."""

import json
import os
import shutil
import time
from pathlib import Path

import psutil

PREFIX = "raytune-"
_OWNER = "owner.json"
# A dead rank's files serve replicas until the rank is back; nobody waits this long.
_KEPT_SECONDS = 3600.0


def claim(folder: Path, *, output: str) -> None:
    """Make `folder` this process's own, and delete what dead processes left beside it.

    That is what a run left that had the same output folder, which this one goes on from, and after an hour all else.

    Args: folder: .../raytune-RUN-NODE. output: the run's output folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = psutil.Process().create_time()
    owner = {"pid": os.getpid(), "started": started, "output": output, "space": _pid_space()}
    (folder / _OWNER).write_text(json.dumps(owner))
    for other in folder.parent.glob(f"{PREFIX}*"):
        earlier = output if _run_of(other) != _run_of(folder) else None
        if other != folder and _is_left(other, earlier):
            shutil.rmtree(other, ignore_errors=True)


def _run_of(folder: Path) -> str:
    return folder.name.rpartition("-")[0]


def _is_left(folder: Path, output: str | None) -> bool:
    """Whether it is ours, its process is dead and nobody reads it. Args: output: of earlier runs, which are over."""
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        owner = json.loads((folder / _OWNER).read_text())
        pid, started = int(owner["pid"]), float(owner["started"])
        newest = max(path.stat().st_mtime for path in folder.iterdir())
    except (OSError, ValueError, KeyError, TypeError):
        # Not made by us, or somebody is at work in it.
        return False
    # Of a process in another container that shares this memory, its id tells nothing.
    over = bool(output) and owner.get("output") == output and owner.get("space") == _pid_space()
    return (over or time.time() - newest > _KEPT_SECONDS) and not _lives(pid, started)


def _pid_space() -> str:
    """What process ids of this container are counted in; empty where there are no containers."""
    space = Path("/proc/self/ns/pid")
    return os.readlink(space) if space.is_symlink() else ""


def _lives(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.Error:
        return False
