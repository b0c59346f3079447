"""The folder that an export writes: whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from raytune.engine.disk import is_full, writes_to
from raytune.errors import CheckpointError, ModelError

MARKER = "raytune_export.json"
"""Says that the folder is an export, what it was made from, and that a later export may replace it."""


def claim(target: Path, sources: Sequence[Path]) -> None:
    """Check that `target` may be written: free, or an earlier export that is not among the sources.

    Raises: ModelError otherwise; nothing on disk has changed then.
    """
    if target.resolve() in [source.resolve() for source in sources]:
        raise ModelError(f"export_dir {target} is what the export reads from", fix="Name another export_dir.")
    if target.exists() and not target.is_dir():
        raise ModelError(f"export_dir {target} is a file", fix="Name another export_dir.")
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise ModelError(
            f"export_dir {target} is not empty and holds no export of raytune",
            fix="Empty it, or name another export_dir.",
        )


@contextmanager
def whole_folder(target: Path, facts: dict[str, object], *, size: int) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `target` when the block ends well, and vanishes when it does not.

    Args: facts: what the marker says. size: bytes that will be written, checked against the free space first.
    Raises: ModelError for a full disk or a folder that cannot be written.
    """
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < size:
            raise ModelError(
                f"the export needs {size / 1e9:.1f} GB and {target.parent} has {free / 1e9:.1f} GB left",
                fix="Free some space, or put export_dir on another disk.",
            )
        with writes_to(temporary):
            yield temporary
            (temporary / MARKER).write_text(json.dumps(facts, indent=2) + "\n")
            _share(temporary)
            _swap(temporary, target)
    except CheckpointError as error:
        raise _cannot_write(target, error.__cause__ or error) from error
    except (OSError, SafetensorError) as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_write(target: Path, error: BaseException) -> ModelError:
    if is_full(target, error):
        fix = "Free some space, or put export_dir on another disk."
        return ModelError(f"the disk of export_dir {target} is full; nothing was left behind", fix=fix)
    return ModelError(f"cannot write export_dir {target}: {error}", fix="Name a folder that can be written.")


def _share(folder: Path) -> None:
    # safetensors writes files that nobody else may read; a server often runs as somebody else.
    mode = (folder / MARKER).stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` where `target` is; an earlier export goes only once the new one is in place."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)
