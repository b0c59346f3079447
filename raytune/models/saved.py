"""Weights in safetensors files: those a rollout engine was loaded from, and those it recovers from."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raytune.errors import RolloutError
from raytune.models.entries import Entry

_DIGEST = "raytune_digest"
_VERSION = "raytune_version"
_HEAD = "lm_head.weight"


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, or the file itself; none for another kind of model."""
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def check_against_folder(folder: Path, entries: Iterable[Sequence[Any]]) -> None:
    """Refuse weights that are not those of the checkpoint in `folder`; a folder without safetensors tells nothing.

    Args: entries: name, dtype, shape of what will come.
    Raises: RolloutError naming what is missing, too much, or of another shape.
    """
    files = weight_files(folder) if folder.is_dir() else []
    if not files:
        return
    coming = {str(name): tuple(shape) for name, _, shape in entries}
    there = {name: shape for path in files for name, shape in _shapes(path).items()}
    # A tied head may or may not be written beside the embeddings.
    missing = sorted(there.keys() - coming.keys() - ({_HEAD} if _is_tied(folder) else set()))
    extra = sorted(coming.keys() - there.keys())
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not in it"
        raise RolloutError(
            f"the published weights are not those of {folder}: {what}",
            fix="Rollouts and trainer must start from the same model_name_or_path.",
        )
    for name, shape in coming.items():
        if there[name] != shape:
            raise RolloutError(
                f"{name} is {list(shape)} in the trainer and {list(there[name])} in {folder}",
                fix="Save the resized model first, and start trainer and rollouts from it.",
            )


def write_saved(path: Path, version: int, tensors: Iterable[tuple[Entry, Tensor]]) -> None:
    """Write tensors as one safetensors file with a digest, whole or not at all."""
    weights = {entry.name: value.to(entry.torch_dtype).contiguous() for entry, value in tensors}
    temporary = path.with_name(f".{path.name}")
    metadata = {_VERSION: json.dumps(version), _DIGEST: _digest(weights)}
    save_file(weights, temporary, metadata=metadata)
    temporary.replace(path)


def verify_saved(path: Path, entries: Iterable[Sequence[Any]]) -> None:
    """Check that safetensors files hold exactly `entries`, and the digest of those that have one.

    Raises: RolloutError.
    """
    files = weight_files(path)
    try:
        there = {name: shape for file in files for name, shape in _shapes(file).items()}
        damaged = [file for file in files if not _is_sound(file)]
    except (OSError, SafetensorError) as error:
        raise RolloutError(f"the weights in {path} cannot be read: {error}") from None
    wanted = {str(name): tuple(shape) for name, _, shape in entries}
    differing = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if differing or damaged:
        reason = f"{differing[0]} is missing, too much or of another shape" if differing else "their digest is wrong"
        raise RolloutError(f"the weights in {path} cannot be loaded: {reason}")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _is_sound(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get(_DIGEST)
        if expected is None:
            return True
        return _digest({name: file.get_tensor(name) for name in file.keys()}) == expected  # noqa: SIM118


def _digest(weights: Mapping[str, Tensor]) -> str:
    total = xxhash.xxh3_64()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(memoryview(weights[name].reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return total.hexdigest()


def _is_tied(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and bool(json.loads(config.read_text()).get("tie_word_embeddings"))
