"""The folder of an adapter on its way: whole and with a digest, or refused. peft is not needed for that."""

import json
import shutil
from pathlib import Path

import xxhash

from raytune.errors import RolloutError

WEIGHTS = "adapter_model.safetensors"
_DIGEST = "digest.json"
_AGAIN = "The replica stays out of service until it has been given the newest adapter."


def seal(partial: Path, folder: Path) -> None:
    """Add the digest of its files to a folder, and give it its name."""
    (partial / _DIGEST).write_text(json.dumps(_digest(partial)))
    partial.rename(folder)


def read_files(folder: Path) -> dict[str, bytes]:
    """All files of an adapter, to travel to another node."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """What `read_files` gave, into `folder`, which appears whole and is verified."""
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, content in files.items():
        (partial / name).write_bytes(content)
    verify_adapter(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def verify_adapter(folder: Path) -> None:
    """Raise RolloutError for an adapter that is missing or damaged."""
    try:
        expected = json.loads((folder / _DIGEST).read_text())
        found = _digest(folder)
    except (OSError, ValueError) as error:
        raise RolloutError(f"the adapter in {folder} cannot be read: {error}", fix=_AGAIN) from None
    if found != expected:
        raise RolloutError(f"the adapter in {folder} is damaged: its digest is wrong", fix=_AGAIN)


def _digest(folder: Path) -> str:
    total = xxhash.xxh3_64()
    for path in sorted(folder.iterdir()):
        if path.name != _DIGEST:
            total.update(path.name.encode())
            total.update(path.read_bytes())
    return total.hexdigest()
