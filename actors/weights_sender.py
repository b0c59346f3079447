"""A trainer rank's side of weight sync: gather, write once for this node, hand buckets to the other nodes.

every rank gathers -> rank 0 writes /dev/shm of its node -> object store -> one WeightReceiver a node -> its /dev/shm
"""

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.weights_messages import Sent, WeightSettings
from raytune.errors import RolloutError

if TYPE_CHECKING:
    from torch import nn

    from raytune.models.entries import Entry
    from raytune.models.flat import FlatWriter, Header

# Buckets that are on their way to one node at a time: they fill its object store.
_IN_FLIGHT = 3


class WeightSender:
    """Lives in every rank; rank 0 writes. Raises ModelError when the weights cannot be merged but have to be.

    Args: model: as it trains (peft model, sharded or whole).
    """

    def __init__(self, model: "nn.Module", settings: WeightSettings, *, rank: int) -> None:
        from raytune.models.adapter_file import obstacle
        from raytune.models.entries import TORCH_DTYPES
        from raytune.models.published import Published
        from raytune.models.shared_memory import claim

        self._model, self._settings, self._writes = model, settings, rank == 0
        self._dtype = TORCH_DTYPES[settings.dtype]
        reason = obstacle(model, max_rank=settings.max_lora_rank)
        if settings.kind == "adapter" and reason is not None:
            raise RolloutError(f"the adapter cannot be sent alone: {reason}", fix="Send merged weights.")
        self.kind: Literal["merged", "adapter"] = "merged" if settings.kind == "merged" or reason else "adapter"
        self._node = ray.get_runtime_context().get_node_id()
        self._folder = settings.on_node(self._node)
        if self._writes:
            claim(self._folder, output=settings.output)
        self._published: Published | None = None
        self._writer: FlatWriter | None = None
        self._newest: Header | None = None
        self._adapters: list[Path] = []
        if self.kind == "merged":
            self._published = Published(model, dtype=self._dtype)

    @property
    def opening(self) -> tuple[str, list[list[Any]]]:
        """What the publisher has to know: this rank's node, and name, dtype and shape of each tensor."""
        return self._node, [[entry.name, entry.dtype, list(entry.shape)] for entry in self.entries]

    @property
    def entries(self) -> "list[Entry]":
        """What engines will be sent; empty for adapters."""
        return self._published.entries if self._published else []

    def publish(self, version: int, receivers: Mapping[str, Any]) -> Sent | None:
        """Make `version` ready on every node that has replicas. Collective; only rank 0 returns something.

        Args: receivers: WeightReceiver actors by node, without this process's own.
        """
        started = time.monotonic()
        if self.kind == "adapter":
            return self._publish_adapter(version, receivers, started)
        assert self._published is not None
        if not self._writes:
            for _ in self._published.tensors(keep=False):
                pass
            return None
        writer = self._ready_writer()
        writer.begin()
        self._newest = writer.seal(version, writer.write(self._published.tensors()))
        written = time.monotonic() - started
        return self._spread(receivers, {"write": written})

    def resend(self, receivers: Mapping[str, Any]) -> Sent:
        """Give nodes that came later, or lost theirs, the newest version. Not collective: rank 0 alone."""
        if self.kind == "adapter":
            return self._spread_adapter(receivers, {})
        return self._spread(receivers, {})

    def save(self, path: Path) -> None:
        """Write the newest merged version as a safetensors file, for recovery. Not collective."""
        from raytune.models.flat import map_file, view_of
        from raytune.models.saved import write_saved

        header, writer = self._require_newest(), self._ready_writer()
        file = map_file(writer.header_path.with_suffix(".bin"), header.size)
        pairs = zip(header.entries, header.offsets, strict=True)
        write_saved(path, header.version, ((entry, view_of(file, entry, offset)) for entry, offset in pairs))

    def _ready_writer(self) -> "FlatWriter":
        from raytune.models.flat import FlatWriter

        if self._writer is None:
            self._writer = FlatWriter(self._folder, self.entries, bucket_bytes=self._settings.bucket_bytes)
        return self._writer

    def _require_newest(self) -> "Header":
        if self._newest is None:
            raise RolloutError("no weights have been published yet", fix="Publish version 0 before the first rollout.")
        return self._newest

    def _spread(self, receivers: Mapping[str, Any], seconds: dict[str, float]) -> Sent:
        """Buckets through the object store, a few at a time; then each node says where its file is."""
        header, writer = self._require_newest(), self._ready_writer()
        nodes, started = _Nodes(receivers, self._settings.deadline), time.monotonic()
        if receivers:
            entries = [(entry.name, entry.dtype, entry.shape) for entry in header.entries]
            nodes.ask("begin", lambda one: one.begin.remote(entries))
            for start, stop, digest in header.buckets:
                piece = ray.put(writer.bucket(start, stop))
                nodes.start(
                    f"take bytes {start} to {stop}", lambda one, p=piece, a=start, d=digest: one.put.remote(a, p, d)
                )
            nodes.finish(left=0)
            nodes.ask("seal", lambda one: one.seal.remote(header.version, list(header.buckets)))
            seconds = {**seconds, "send": time.monotonic() - started}
        paths = {self._node: str(writer.header_path), **nodes.answers}
        return Sent(header.version, "merged", paths, header.num_bytes, seconds, nodes.missed)

    def _publish_adapter(self, version: int, receivers: Mapping[str, Any], started: float) -> Sent | None:
        from peft import PeftModel

        from raytune.models.adapter_file import gather_adapter, write_adapter

        assert isinstance(self._model, PeftModel)
        weights = gather_adapter(self._model, keep=self._writes)
        if not self._writes:
            return None
        # Published again after a trainer's recovery, a version is another one: engines know adapters by their path.
        folder = self._folder / f"adapter-{version}-{time.monotonic_ns()}"
        self._num_bytes = write_adapter(self._model, weights, folder, dtype=self._dtype)
        self._version, self._adapters = version, [*self._adapters, folder]
        for old in self._adapters[: -self._settings.kept_adapters]:
            shutil.rmtree(old, ignore_errors=True)
        self._adapters = self._adapters[-self._settings.kept_adapters :]
        return self._spread_adapter(receivers, {"write": time.monotonic() - started})

    def _spread_adapter(self, receivers: Mapping[str, Any], seconds: dict[str, float]) -> Sent:
        from raytune.models.adapter_folder import read_files

        if not self._adapters:
            self._require_newest()
        folder, started = self._adapters[-1], time.monotonic()
        nodes = _Nodes(receivers, self._settings.deadline)
        if receivers:
            files, kept = ray.put(read_files(folder)), self._settings.kept_adapters
            nodes.ask("take the adapter", lambda one: one.put_adapter.remote(folder.name, files, kept))
            seconds = {**seconds, "send": time.monotonic() - started}
        paths = {self._node: str(folder), **nodes.answers}
        return Sent(self._version, "adapter", paths, self._num_bytes, seconds, nodes.missed)


class _Nodes:
    """The receivers of one transfer; one that fails or is late is left out of the rest, and the others go on."""

    def __init__(self, receivers: Mapping[str, Any], deadline: float) -> None:
        self._left, self._deadline = dict(receivers), deadline
        self._pending: deque[tuple[str, dict[str, Any]]] = deque()
        self.answers: dict[str, str] = {}
        self.missed: dict[str, str] = {}

    def ask(self, what: str, call: Callable[[Any], Any]) -> None:
        """Call each receiver and wait; `answers` are theirs."""
        self.start(what, call)
        self.finish(left=0)

    def start(self, what: str, call: Callable[[Any], Any]) -> None:
        """Call each receiver; waits only for calls so old that too many would be under way."""
        self._pending.append((what, {node: call(one) for node, one in self._left.items()}))
        self.finish(left=_IN_FLIGHT)

    def finish(self, *, left: int) -> None:
        """Wait until at most `left` calls are under way."""
        while len(self._pending) > left:
            what, refs = self._pending.popleft()
            for node, ref in refs.items():
                try:
                    self.answers[node] = ray.get(ref, timeout=self._deadline)
                except GetTimeoutError:
                    self._drop(node, f"did not {what} within {self._deadline:g} s")
                except RayError as error:
                    self._drop(node, f"could not {what}: {str(error).strip().splitlines()[-1]}")

    def _drop(self, node: str, reason: str) -> None:
        self._left.pop(node, None)
        self.answers.pop(node, None)
        self.missed.setdefault(node, reason)
