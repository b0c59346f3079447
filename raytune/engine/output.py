"""The output folder of a run: whose it is, whether to go on in it, and what is left in it at the end."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from raytune.engine.checkpoint import MANIFEST, CheckpointStore, verify, write_json
from raytune.engine.disk import cannot_write, is_full, nearest, writes_to
from raytune.engine.identity import SUBJECT, Identity, differences
from raytune.errors import CheckpointError, ConfigError

_RUN_FILE = "run.json"
# Files of a model; those of an earlier result must not lie beside a newer one.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
)
_LOGS = (
    "trainer_log.jsonl",
    "transcripts.jsonl",
    "stacks.txt",
    "trainer_state.json",
    "*_results.json",
    "runs",
    _RUN_FILE,
)
_OURS = ("checkpoint-*", ".staging-*", *_LOGS, *_MODEL_FILES)
_LOCK = ".lock"
# What a run would be missed for; a folder with none of them may be taken by another run.
_RESULTS = ("checkpoint-*", "*.safetensors", "*_results.json")
# Parts of a checkpoint that serve resuming alone and are not part of the finished model.
_STATE_FILES = {MANIFEST, "trainer_state.json", "small_state.json", "optimizer"}


@dataclass(frozen=True, slots=True)
class Decision:
    """How a run starts. `clears`: what an earlier run left in the folder goes first.

    Example: Decision(Path("saves/a/checkpoint-40"), "resuming from saves/a/checkpoint-40 ...")
    """

    checkpoint: Path | None
    message: str | None
    clears: bool = False


def decide_start(folder: Path, identity: Identity, *, overwrite: bool, resume: str | bool | None) -> Decision:
    """Decide where a run starts; nothing is written, so that a run which fails early leaves no trace.

    LLaMA-Factory's rule, said aloud: a folder with a checkpoint of this run is resumed unless `overwrite` is set, and
    an explicit `resume` wins over `overwrite`; a folder with something else in it is refused.

    Args: resume: `resume_from_checkpoint`: a path, True or "auto" for the newest one, False for none, None for auto.
    Raises: ConfigError, CheckpointError for a folder of another run, or a checkpoint that does not fit this one.
    """
    _check_writable(folder)
    if not overwrite and not _belongs_to(folder, identity):
        raise ConfigError(
            f"output_dir {folder} is not empty and holds no run of raytune",
            fix="Name another output_dir, or set overwrite_output_dir: true.",
        )
    clears = overwrite and not _resumes_inside(folder, resume)
    decision = Decision(None, None) if clears and not _is_path(resume) else _decide(CheckpointStore(folder), resume)
    if decision.checkpoint is not None:
        _check_fits(decision.checkpoint, identity)
    return replace(decision, clears=clears)


@contextmanager
def claim_output(folder: Path, identity: Identity, decision: Decision) -> Iterator[None]:
    """Within: `folder` is this run's own, and no other run writes there.

    Raises CheckpointError when it cannot be written, ConfigError when another run is writing there.
    """
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another run is writing to output_dir {folder}", fix="Wait for it, or name another output_dir."
            ) from None
        store = CheckpointStore(folder)
        try:
            if decision.clears:
                _clear(folder)
            store.sweep_staging()
            write_json(folder / _RUN_FILE, identity)
            yield
        finally:
            # What a failed save left behind.
            store.sweep_staging()
            lock.release()


def _check_writable(folder: Path) -> None:
    above = nearest(folder)
    if not above.is_dir():
        raise ConfigError(f"output_dir {folder} cannot be made: {above} is a file", fix="Name another output_dir.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir {folder} cannot be written: no permission in {above}", fix="Name another one.")
    if is_full(above):
        raise cannot_write(folder, OSError(errno.ENOSPC, "no space left"))


def _is_path(resume: str | bool | None) -> bool:
    return isinstance(resume, str) and resume not in ("auto", "true", "false")


def _resumes_inside(folder: Path, resume: str | bool | None) -> bool:
    """Whether the user asks to go on from what the folder itself holds."""
    if isinstance(resume, str) and _is_path(resume):
        return Path(resume).absolute().is_relative_to(folder.absolute())
    return resume in (True, "true", "auto")


def _decide(store: CheckpointStore, resume: str | bool | None) -> Decision:
    if isinstance(resume, str) and _is_path(resume):
        verify(Path(resume))
        return Decision(Path(resume), f"resuming from {resume}")
    latest = store.latest()
    if resume in (False, "false"):
        if latest is not None:
            raise ConfigError(
                f"output_dir {store.output_dir} holds {latest.name}, and resume_from_checkpoint is false",
                fix="Set overwrite_output_dir: true to start anew, or name another output_dir.",
            )
        return Decision(None, None)
    if latest is None:
        if resume in (True, "true"):
            raise CheckpointError(
                f"there is no whole checkpoint in {store.output_dir} to resume from",
                fix="Remove resume_from_checkpoint, or name a checkpoint folder.",
            )
        return Decision(None, None)
    return Decision(latest, f"resuming from {latest}; set overwrite_output_dir: true to start anew")


def _belongs_to(folder: Path, identity: Identity) -> bool:
    """Whether the folder is free or this run's own. Raises ConfigError when it is another run's."""
    if not folder.exists() or not any(path.name != _LOCK for path in folder.iterdir()):
        return True
    if not (folder / _RUN_FILE).is_file():
        return False
    there = _read_run(folder / _RUN_FILE)
    differing = differences(there, identity)
    if differing and any(next(folder.glob(pattern), None) for pattern in _RESULTS):
        raise ConfigError(
            f"output_dir {folder} belongs to another run: {_changes(there, identity, differing)}",
            fix="To go on with that run, set back what changed; else name another output_dir, or set "
            "overwrite_output_dir: true.",
        )
    return True


def _check_fits(checkpoint: Path, identity: Identity) -> None:
    """Raise ConfigError for a checkpoint, of whichever folder, whose tensors have another shape than this run's."""
    of_its_run = checkpoint.absolute().parent / _RUN_FILE
    if not of_its_run.is_file():
        return
    there = _read_run(of_its_run)
    differing = [key for key in differences(there, identity) if key not in SUBJECT]
    if differing:
        raise ConfigError(
            f"checkpoint {checkpoint} does not fit this run: {_changes(there, identity, differing)}",
            fix="Set back what changed, or start anew without resume_from_checkpoint.",
        )


def _changes(before: Identity, now: Identity, keys: list[str]) -> str:
    return ", ".join(f"{key} was {before[key]}, is now {now[key]}" for key in keys)


def _read_run(path: Path) -> Identity:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"cannot tell whose run is in output_dir {path.parent}: {path.name} cannot be read ({error})",
            fix="Name another output_dir, or set overwrite_output_dir: true.",
        ) from None


def _clear(folder: Path) -> None:
    """Remove what an earlier run of raytune left; files of others stay."""
    for pattern in _OURS:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def publish_weights(source: Path, folder: Path) -> None:
    """Copy the model files of a checkpoint into `folder`, each one whole or not at all."""
    new = {path.name for path in source.iterdir() if path.is_file()} - _STATE_FILES
    for old in [path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.name not in new]:
        old.unlink()
    for path in sorted(source / name for name in new):
        temporary = folder / f".{path.name}"
        shutil.copyfile(path, temporary)
        temporary.replace(folder / path.name)


def write_results(folder: Path, results: dict[str, dict[str, float | int]]) -> None:
    """Write <name>_results.json for each part, and all of them together in all_results.json."""
    for name, values in results.items():
        write_json(folder / f"{name}_results.json", values)
    write_json(folder / "all_results.json", _merged(results.values()))


def _merged(parts: Iterable[dict[str, float | int]]) -> dict[str, float | int]:
    return {key: value for part in parts for key, value in part.items()}
