"""Weights in two flat files that are written in turns: nothing to parse, mapped by readers, pages reused.

slot-0.bin, slot-1.bin: tensors one after the other. slot-N.json: what is in it; absent while the file is written, so
that a reader who finds the version it was told of before and after its reading has read that version alone.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import xxhash
from torch import Tensor

from raytune.errors import RolloutError
from raytune.models.entries import Entry, buckets_of

BUCKET_BYTES = 32 * 1024 * 1024
# Cache lines, and enough for every dtype.
_ALIGN = 64
_NUM_SLOTS = 2
_AGAIN = "The replica stays out of service until it has been given the newest weights."


# Made by FlatWriter, read by rollout actors and node receivers; beside the file as JSON.
@dataclass(frozen=True, slots=True)
class Header:
    """What a flat file holds.

    Args: offsets: of each entry, in bytes. buckets: start, stop in bytes and digest of each piece that travels.

    Example: Header(7, 1024, (Entry("model.norm.weight", "float32", (64,)),), (0,), ((0, 256, "9f0c..."),))
    """

    version: int
    size: int
    entries: tuple[Entry, ...]
    offsets: tuple[int, ...]
    buckets: tuple[tuple[int, int, str], ...]

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Read slot-N.json. Raises RolloutError when it is not there, as while its file is being written."""
        try:
            raw = json.loads(path.read_text())
            entries = tuple(Entry(name, dtype, tuple(shape)) for name, dtype, shape in raw["entries"])
            buckets = tuple((int(start), int(stop), str(digest)) for start, stop, digest in raw["buckets"])
            return cls(raw["version"], raw["size"], entries, tuple(raw["offsets"]), buckets)
        except FileNotFoundError:
            raise RolloutError(f"{path} is not there: its weights are being written, or are gone", fix=_AGAIN) from None
        except (ValueError, KeyError, TypeError) as error:
            raise RolloutError(f"{path} does not describe weights ({error})", fix=_AGAIN) from None

    def write(self, path: Path) -> None:
        """Write slot-N.json whole or not at all."""
        plain: dict[str, Any] = asdict(self)
        plain["entries"] = [[entry.name, entry.dtype, list(entry.shape)] for entry in self.entries]
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(plain))
        temporary.replace(path)

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)


class FlatWriter:
    """The writing side. The files keep their size and pages from version to version.

    Args: folder: made when missing; on /dev/shm for speed. Raises RolloutError when there is no room.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], *, bucket_bytes: int = BUCKET_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._entries = folder, tuple(entries)
        padded = [-(-entry.num_bytes // _ALIGN) * _ALIGN for entry in entries]
        self._offsets = tuple(sum(padded[:place]) for place in range(len(padded)))
        self.size = max(sum(padded), _ALIGN)
        self._runs = buckets_of(padded, bucket_bytes)
        self._mapped: dict[int, Tensor] = {}
        # The writer of a process that died before this one: its newest slot may still be wanted.
        headers = [folder / f"slot-{slot}.json" for slot in range(_NUM_SLOTS)]
        written = [(path.stat().st_mtime_ns, slot) for slot, path in enumerate(headers) if path.exists()]
        self._slot = max(written)[1] if written else -1
        _check_room(folder, _NUM_SLOTS * self.size)

    def begin(self) -> None:
        """Take the slot that was not written last; from here on its readers see that it changes."""
        self._slot = (self._slot + 1) % _NUM_SLOTS
        self.header_path.unlink(missing_ok=True)
        self._file()

    @property
    def header_path(self) -> Path:
        return self._folder / f"slot-{self._slot}.json"

    def write(self, tensors: Iterable[tuple[Entry, Tensor]]) -> list[tuple[int, int, str]]:
        """Copy tensors in the order of the entries, cast to theirs; returns the buckets with their digests.

        Raises RolloutError for a tensor that is missing, too much, or of another shape.
        """
        source = iter(tensors)
        buckets = []
        for run in self._runs:
            for place in run:
                self._copy(place, source)
            buckets.append(self._digested(run))
        if (extra := next(source, None)) is not None:
            raise RolloutError(f"{extra[0].name} came after the last of {len(self._entries)} weights")
        return buckets

    def put(self, start: int, piece: npt.NDArray[Any], digest: str) -> tuple[int, int, str]:
        """Copy one bucket that came from another node; raises RolloutError when it changed on its way."""
        stop = start + piece.nbytes
        view = self._file()[start:stop]
        view.numpy()[:] = piece
        if digest_of(view) != digest:
            raise RolloutError(f"bytes {start} to {stop} of the weights changed on their way to this node")
        return start, stop, digest

    def bucket(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The bytes of a bucket of the newest slot, without a copy."""
        return self._file()[start:stop].numpy()

    def seal(self, version: int, buckets: Sequence[tuple[int, int, str]]) -> Header:
        """Say that the slot is whole and what is in it."""
        header = Header(version, self.size, self._entries, self._offsets, tuple(buckets))
        header.write(self.header_path)
        return header

    def _file(self) -> Tensor:
        if self._slot not in self._mapped:
            path = self.header_path.with_suffix(".bin")
            self._mapped[self._slot] = torch.from_file(str(path), shared=True, size=self.size, dtype=torch.uint8)
        return self._mapped[self._slot]

    def _copy(self, place: int, source: Iterator[tuple[Entry, Tensor]]) -> None:
        entry, (given, value) = self._entries[place], next(source, (None, None))
        if given != entry or value is None or tuple(value.shape) != entry.shape:
            shape = "nothing" if given is None or value is None else f"{given.name} {tuple(value.shape)}"
            raise RolloutError(f"{entry.name} {entry.shape} was to be published, but there came {shape}")
        view_of(self._file(), entry, self._offsets[place]).copy_(value)

    def _digested(self, run: range) -> tuple[int, int, str]:
        start = self._offsets[run.start]
        stop = self._offsets[run.stop] if run.stop < len(self._offsets) else self.size
        return start, stop, digest_of(self._file()[start:stop])


def view_of(file: Tensor, entry: Entry, offset: int) -> Tensor:
    """One tensor inside a mapped file [bytes], without a copy."""
    return file[offset : offset + entry.num_bytes].view(entry.torch_dtype).view(entry.shape)


def map_file(path: Path, size: int) -> Tensor:
    """Map a flat file for reading: uint8 [size]. Raises RolloutError when it is missing or has another size."""
    there = path.stat().st_size if path.is_file() else None
    if there != size:
        raise RolloutError(f"{path} should have {size:,} bytes, it has {there}", fix=_AGAIN)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def digest_of(piece: Tensor) -> str:
    """XXH3 of bytes; it finds damage, not malice, at the speed of memory."""
    return xxhash.xxh3_64_hexdigest(memoryview(piece.numpy()))  # type: ignore[arg-type]


def verify(header_path: Path, version: int, file: Tensor | None = None) -> Header:
    """Check that the file holds `version`, whole and undamaged. Raises RolloutError.

    Args: file: the mapped file, when it is mapped already.
    """
    header = Header.read(header_path)
    if header.version != version:
        raise RolloutError(f"{header_path} holds version {header.version}, not {version}", fix=_AGAIN)
    mapped = map_file(header_path.with_suffix(".bin"), header.size) if file is None else file
    for start, stop, digest in header.buckets:
        if digest_of(mapped[start:stop]) != digest:
            raise RolloutError(f"bytes {start} to {stop} of {header_path} are damaged (version {version})", fix=_AGAIN)
    return header


def _check_room(folder: Path, wanted: int) -> None:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize + sum(path.stat().st_size for path in folder.glob("slot-*.bin"))
    if free < wanted:
        raise RolloutError(
            f"the weights need {wanted:,} bytes of shared memory in {folder}, {free:,} are free",
            fix="Enlarge /dev/shm (docker run --shm-size), or stop what fills it.",
        )
