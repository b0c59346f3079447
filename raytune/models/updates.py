"""One version of the weights as a replica is told of it: where it lies, whether it is whole, its tensors.

An update is a dict of plain values: {"kind": "flat", "path": ".../slot-0.json", "version": 7}, with "safetensors" and a
folder or file for recovery.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from raytune.errors import RolloutError
from raytune.models.flat import Header, map_file, verify, view_of
from raytune.models.saved import verify_saved, weight_files

FLAT = "flat"
SAVED = "safetensors"


class UpdateReader:
    """Reads updates; keeps the two flat files of a run mapped, whose pages stay the same from version to version."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[str, int], Tensor] = {}

    def verify(self, update: Mapping[str, Any], version: int, entries: Iterable[Sequence[Any]]) -> None:
        """Raise RolloutError for an update that is damaged, incomplete or another version. Nothing is changed.

        Args: entries: name, dtype and shape of each tensor that was announced.
        """
        path = Path(update["path"])
        match update["kind"]:
            case "flat":
                header = Header.read(path)
                there = [(entry.name, entry.dtype, entry.shape) for entry in header.entries]
                wanted = [(str(name), str(dtype), tuple(shape)) for name, dtype, shape in entries]
                if there != wanted:
                    odd = sorted({name for name, _, _ in set(there) ^ set(wanted)}) or ["their order"]
                    raise RolloutError(f"{path} does not hold the weights that were announced: {odd[0]} differs")
                verify(path, version, self._map(path, header.size))
            case "safetensors":
                verify_saved(path, entries)
            case kind:
                raise RolloutError(f"there is no kind of weight update called {kind!r}")

    def tensors(self, update: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors; those of a flat file are views of it, to be copied before the next version but one.

        Raises RolloutError at the end if the file was written anew meanwhile: what was read is a mixture then.
        """
        path = Path(update["path"])
        if update["kind"] == SAVED:
            yield from _saved(path)
            return
        header = Header.read(path)
        file = self._map(path, header.size)
        for entry, offset in zip(header.entries, header.offsets, strict=True):
            yield entry.name, view_of(file, entry, offset)
        if Header.read(path).version != update["version"]:
            raise RolloutError(f"{path} was written anew while version {update['version']} was read")

    def _map(self, header_path: Path, size: int) -> Tensor:
        path = header_path.with_suffix(".bin")
        key = (str(path), path.stat().st_ino if path.is_file() else 0)
        if key not in self._mapped or self._mapped[key].numel() != size:
            self._mapped[key] = map_file(path, size)
        return self._mapped[key]


def _saved(path: Path) -> Iterator[tuple[str, Tensor]]:
    for one in weight_files(path):
        with safe_open(one, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)
