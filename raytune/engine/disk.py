"""A disk that takes no more, said in one sentence, whichever library met it."""

import errno
import shutil
from pathlib import Path
from types import TracebackType

from raytune.errors import CheckpointError, RaytuneError

_NEARLY_NOTHING = 1 << 20
# Rust libraries (safetensors, tokenizers) and torch's writers hand on what the system said as text alone.
_TEXTS = ("(os error ", "inline_container", "PytorchStreamWriter")


class writes_to:
    """Within: a failure to write becomes a CheckpointError that names `folder`; other errors pass.

    A class and not a generator: tokenizers raise a bare Exception and torch a BaseException, and neither can be caught
    by its type without catching everything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and _is_of_the_disk(error):
            raise cannot_write(self._folder, error) from error


def cannot_write(folder: Path, error: BaseException) -> CheckpointError:
    """The error of a folder that takes no more, or cannot be written at all."""
    if is_full(folder, error):
        return CheckpointError(
            f"the disk is full: {folder} takes no more",
            fix="Free space there, or name an output_dir on another disk; save_total_limit saves space.",
        )
    said = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().splitlines()[-1]
    return CheckpointError(f"cannot write to {folder}: {said}", fix="Name an output_dir that can be written.")


def is_full(folder: Path, error: BaseException | None = None) -> bool:
    """Whether the disk of a folder (or of the nearest one above that exists) has no room."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if error is not None and "No space left" in str(error):
        return True
    return shutil.disk_usage(nearest(folder)).free < _NEARLY_NOTHING


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest path above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _is_of_the_disk(error: BaseException) -> bool:
    if isinstance(error, RaytuneError):
        return False
    # Time-outs are OSErrors without a number.
    return (isinstance(error, OSError) and error.errno is not None) or any(text in str(error) for text in _TEXTS)
