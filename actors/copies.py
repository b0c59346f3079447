"""Folders of copies on a node: a process holds those it uses, and whoever starts next removes those that nobody holds.

The hold is a lock of the kernel. It goes with its process, however that ends: ranks of a killed driver get no say.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from raytune.errors import PlacementError

_PREFIX = "raytune-"
_HOLD = "held"
_DEADLINE = 600.0
_holds: dict[Path, int] = {}
"""Open files that carry the locks of this process."""


def claim(token: str) -> Path:
    """Return the folder of a run's copies on this node, and hold it as long as this process lives."""
    folder = _root() / f"{_PREFIX}{token}"
    if folder not in _holds:
        with _one_at_a_time():
            folder.mkdir(mode=0o700, exist_ok=True)
            _holds[folder] = os.open(folder / _HOLD, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(_holds[folder], fcntl.LOCK_SH)
    return folder


def forget(token: str) -> None:
    """Delete the folder, whoever holds it."""
    folder = _root() / f"{_PREFIX}{token}"
    with _one_at_a_time():
        shutil.rmtree(folder, ignore_errors=True)
    if (hold := _holds.pop(folder, None)) is not None:
        os.close(hold)


def sweep() -> None:
    """Delete the folders of this user that no process holds any more."""
    with _one_at_a_time():
        for hold in _root().glob(f"{_PREFIX}*/{_HOLD}"):
            # Another program may be tidying up as well.
            with suppress(FileNotFoundError):
                if hold.stat().st_uid == os.getuid() and not _is_held(hold):
                    shutil.rmtree(hold.parent, ignore_errors=True)


def _is_held(hold: Path) -> bool:
    with hold.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """No folder is swept between being made and being held."""
    lock = FileLock(_root() / f".{_PREFIX}{os.getuid()}.lock", timeout=_DEADLINE)
    try:
        lock.acquire()
    except Timeout:
        fix = "End the process that holds it, or remove the file."
        raise PlacementError(f"waited {_DEADLINE:g} s for the lock {lock.lock_file}", fix=fix) from None
    try:
        yield
    finally:
        lock.release()


def _root() -> Path:
    return Path(tempfile.gettempdir())
