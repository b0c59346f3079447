"""Weights on nodes without the sending rank: what comes through the object store becomes files in shared memory."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.weights_messages import WeightSettings
from raytune.errors import RolloutError

if TYPE_CHECKING:
    import numpy.typing as npt

    from raytune.models.flat import FlatWriter


class WeightReceiver:
    """A tiny actor, one a node without the sender: what comes through the object store becomes that node's files."""

    def __init__(self, settings: WeightSettings) -> None:
        from raytune.models.shared_memory import claim

        self._folder = settings.on_node(ray.get_runtime_context().get_node_id())
        claim(self._folder, output=settings.output)
        self._bucket_bytes = settings.bucket_bytes
        self._writer: FlatWriter | None = None
        self._received: list[tuple[int, int, str]] = []
        self._adapters: list[Path] = []

    def begin(self, entries: list[tuple[str, str, tuple[int, ...]]]) -> None:
        """Take the slot that was written before last."""
        from raytune.models.entries import Entry
        from raytune.models.flat import FlatWriter

        if self._writer is None:
            wanted = [Entry(name, dtype, tuple(shape)) for name, dtype, shape in entries]
            self._writer = FlatWriter(self._folder, wanted, bucket_bytes=self._bucket_bytes)
        self._received = []
        self._writer.begin()

    def put(self, start: int, piece: "npt.NDArray[Any]", digest: str) -> None:
        """One bucket; it is a view of the object store until it is copied."""
        assert self._writer is not None
        self._received.append(self._writer.put(start, piece, digest))

    def seal(self, version: int, buckets: list[tuple[int, int, str]]) -> str:
        """All buckets came: say so in slot-N.json and return its path."""
        assert self._writer is not None
        if sorted(self._received) != sorted(buckets):
            raise RolloutError(f"{len(buckets)} buckets of weights {version} were sent, {len(self._received)} arrived")
        self._writer.seal(version, buckets)
        return str(self._writer.header_path)

    def put_adapter(self, name: str, files: dict[str, bytes], kept: int) -> str:
        """Write an adapter's folder and return its path."""
        from raytune.models.adapter_folder import write_files

        folder = self._folder / name
        write_files(folder, files)
        self._adapters = [*(path for path in self._adapters if path != folder), folder]
        for old in self._adapters[:-kept]:
            shutil.rmtree(old, ignore_errors=True)
        self._adapters = self._adapters[-kept:]
        return str(folder)
