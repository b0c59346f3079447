"""Checkpoints as folders: written aside, hashed, renamed into place, verified before they are loaded.

output_dir/checkpoint-40/
    adapter_model.safetensors | model*.safetensors      weights in Hugging Face's format
    optimizer/                                          sharded optimizer state (torch.distributed.checkpoint)
    small_state.json                                    learning-rate schedule, loss scale
    trainer_state.json                                  step, data position, log history, best metric
    manifest.json                                       size and hash of every file; its presence makes it a checkpoint
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raytune.errors import CheckpointError

MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"
_STAGING = ".staging-"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one output folder."""

    output_dir: Path

    def stage(self, step: int) -> Path:
        """Return an empty folder to write checkpoint `step` into; nothing picks it up before `commit`."""
        folder = self.output_dir / f"{_STAGING}{step}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, step: int) -> Path:
        """Hash what was staged, write the manifest last, and rename the folder to checkpoint-`step`."""
        staged = self.output_dir / f"{_STAGING}{step}"
        files = {str(path.relative_to(staged)): _describe(path) for path in _files(staged)}
        write_json(staged / MANIFEST, {"format": _FORMAT, "step": step, "files": files})
        final = self.output_dir / f"{_PREFIX}{step}"
        shutil.rmtree(final, ignore_errors=True)
        staged.rename(final)
        _sync_folder(self.output_dir)
        return final

    def steps(self) -> list[int]:
        """Steps that have a committed checkpoint, ascending."""
        found = [path.parent.name.removeprefix(_PREFIX) for path in self.output_dir.glob(f"{_PREFIX}*/{MANIFEST}")]
        return sorted(int(step) for step in found if step.isdigit())

    def path(self, step: int) -> Path:
        return self.output_dir / f"{_PREFIX}{step}"

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies; damaged newer ones are passed over."""
        for step in reversed(self.steps()):
            if not damaged_files(self.path(step)):
                return self.path(step)
        return None

    def prune(self, limit: int | None, *, keep: int | None) -> None:
        """Delete the oldest checkpoints beyond `limit`; checkpoint `keep` (the best one) is never deleted."""
        if limit is None or limit <= 0:
            return
        spare = [step for step in self.steps() if step != keep]
        room = limit - 1 if keep is not None and self.path(keep).exists() else limit
        # The newest one always stays: it is what a killed run goes on from.
        for step in spare[: -max(room, 1)]:
            shutil.rmtree(self.path(step))

    def drop_after(self, step: int) -> list[int]:
        """Delete checkpoints of later steps: a run that goes on from `step` will write its own. Returns their steps."""
        later = [other for other in self.steps() if other > step]
        for other in later:
            shutil.rmtree(self.path(other))
        return later

    def sweep_staging(self) -> None:
        """Remove what an interrupted save left behind."""
        for folder in self.output_dir.glob(f"{_STAGING}*"):
            shutil.rmtree(folder, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of `folder` is there with the hash its manifest names."""
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no {MANIFEST}",
            fix="Name a checkpoint-N folder that raytune wrote, or set resume_from_checkpoint: auto.",
        )
    damaged = damaged_files(folder)
    if damaged:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: {', '.join(damaged[:5])}",
            fix="Resume from an older checkpoint-N, or set resume_from_checkpoint: auto to take the newest whole one.",
        )


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or differ from the manifest, each with what is wrong."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return [f"{MANIFEST} cannot be read"]
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != expected["size"] or _describe(path) != expected:
            problems.append(f"{name} differs")
    return problems


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of either."""
    # Always the same name: what a killed run left of it, the next one replaces.
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2, allow_nan=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _describe(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
