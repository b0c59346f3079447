"""A folder of prepared splits: made under another name, renamed when it is whole, found again by its key."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from raytune.data.store import REMEDY, RowStore, cannot_write, write_atomically
from raytune.errors import DataError

PREPARED = "prepared.json"
TRAIN = "train"
_ABANDONED_AFTER = 24 * 3600
"""Seconds after which the folder of an interrupted build is removed."""
_RENAMES = 20


# Made by actors.data.prepare_data, read by every rank.
@dataclass(frozen=True)
class PreparedData:
    """Where the row stores of a run lie. `eval` has the key "" for a single evaluation set, else the sets' names.

    Example: RowStore.open(prepared.train); RowStore.open(prepared.eval[""])
    """

    root: Path
    key: str
    train: Path | None = None
    eval: dict[str, Path] = field(default_factory=dict)

    def moved(self, copy: Callable[[Path], Path]) -> "PreparedData":
        """Return the same data under other folders. Args: copy: copies a folder and returns where the copy is."""
        train = copy(self.train) if self.train else None
        return replace(self, train=train, eval={name: copy(path) for name, path in self.eval.items()})

    @property
    def stores(self) -> list[Path]:
        return [*([self.train] if self.train else []), *self.eval.values()]


def open_prepared(root: Path) -> PreparedData:
    """Read what a folder holds and check that its blocks are there.

    Raises: DataError when it is not a folder of prepared data, or is damaged.
    """
    try:
        content = json.loads((root / PREPARED).read_bytes())
        key, folders = content["key"], content["eval"]
        train = root / TRAIN if content["train"] else None
        prepared = PreparedData(root, key, train, {name: root / folder for name, folder in folders.items()})
    except FileNotFoundError:
        raise DataError("the folder holds no prepared data", where=str(root), fix=REMEDY) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the prepared data cannot be read: {error}", where=str(root), fix=REMEDY) from None
    for store in prepared.stores:
        RowStore.open(store)
    return prepared


def write_prepared(root: Path, key: str, *, train: bool, evaluation: Mapping[str, str]) -> None:
    """Write the list of splits, last of all. Args: evaluation: name of an evaluation set -> its folder."""
    content = {"key": key, "train": train, "eval": dict(evaluation)}
    write_atomically(root / PREPARED, json.dumps(content, indent=1).encode())


def begin_build(final: Path) -> Path:
    """Return a new folder beside `final` to build it in, and clear away what interrupted builds left there."""
    build = final.with_name(f".{final.name}.build-{uuid4().hex[:12]}")
    try:
        build.mkdir(parents=True)
        for other in final.parent.glob(".*.build-*"):
            if other.stat().st_mtime < time.time() - _ABANDONED_AFTER:
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise cannot_write(build, error) from None
    return build


def publish(build: Path, final: Path, *, overwrite: bool = False) -> PreparedData:
    """Give a whole build its name, at once. If another run was faster, its folder is used and the build removed.

    Args: overwrite: put the build in the place of a folder that is there, unless it holds the same, whole: runs that
        read it are not disturbed then.
    Raises: DataError when the folder cannot be renamed.
    """
    for _ in range(_RENAMES):
        try:
            build.rename(final)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise cannot_write(final, error) from None
        if not overwrite or _is_whole(final, build):
            shutil.rmtree(build, ignore_errors=True)
            break
        _set_aside(final)
    else:
        where = str(final)
        raise DataError("other runs keep writing the same prepared data", where=where, fix="Unset overwrite_cache.")
    return open_prepared(final)


def _is_whole(final: Path, build: Path) -> bool:
    """Whether `final` holds just what `build` does, every byte of it."""
    try:
        ours, theirs = open_prepared(build), open_prepared(final)
        for mine, other in zip(ours.stores, theirs.stores, strict=True):
            store = RowStore.open(other)
            if store.manifest != RowStore.open(mine).manifest:
                return False
            store.verify()
    except (DataError, ValueError):
        return False
    return True


def _set_aside(final: Path) -> None:
    # Ranks that have mapped its files keep them; a removed file lives until the last map of it goes.
    old = final.with_name(f".{final.name}.build-{uuid4().hex[:12]}")
    try:
        final.rename(old)
    except FileNotFoundError:
        return
    shutil.rmtree(old, ignore_errors=True)


def user_cache() -> Path:
    """The user's cache folder for prepared data: $XDG_CACHE_HOME/raytune/data, or ~/.cache/raytune/data."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raytune" / "data"
