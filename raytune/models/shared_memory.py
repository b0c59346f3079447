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


def claim(folder: Path) -> None:
    """Make `folder` this process's own, and delete what dead processes left beside it more than an hour ago."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = psutil.Process().create_time()
    (folder / _OWNER).write_text(json.dumps({"pid": os.getpid(), "started": started}))
    for other in folder.parent.glob(f"{PREFIX}*"):
        if other != folder and other.is_dir() and other.owner() == folder.owner() and _is_left(other):
            shutil.rmtree(other, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    try:
        owner = json.loads((folder / _OWNER).read_text())
        pid, started = int(owner["pid"]), float(owner["started"])
        newest = max(path.stat().st_mtime for path in folder.iterdir())
    except (OSError, ValueError, KeyError, TypeError):
        # Not ours, or somebody is at work in it.
        return False
    return time.time() - newest > _KEPT_SECONDS and not _lives(pid, started)


def _lives(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.Error:
        return False
