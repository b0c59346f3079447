"""Weights between GPUs through vLLM's own engines: NCCL to other GPUs, CUDA IPC to the same ones; no host memory.

all ranks gather -> rank 0 -> NCCL broadcast, or handles of its GPU memory -> each replica's `receive`, which pauses,
loads, commits, forgets caches and resumes as it does for files.

Written from the source of vLLM 0.32 (distributed/weight_transfer/{nccl,ipc}_engine.py). What needs a GPU has not been
run yet: the handshake and the transfer of both engines. tests/gpu holds the test; what surrounds them is tested.
"""

import base64
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.exceptions import GetTimeoutError

from raytune.errors import RolloutError

if TYPE_CHECKING:
    import torch
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    from raytune.models.published import Published

Backend = Literal["raytune_flat", "nccl", "ipc"]


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank or a replica sits. gpus: unique ids; none on a CPU. Example: Seat("4f1c", frozenset({"GPU-9a"}))"""

    node: str
    gpus: frozenset[str]


def choose_backend(ranks: Sequence[Seat], replicas: Sequence[Seat]) -> Backend:
    """How weights travel: files where anybody has no GPU, IPC where each replica shares its GPUs with ranks, else NCCL.

    A mixture of shared and other GPUs goes through files too: one engine of vLLM cannot serve both.
    """
    if not all(seat.gpus for seat in [*ranks, *replicas]):
        return "raytune_flat"
    training = frozenset().union(*(seat.gpus for seat in ranks))
    if all(seat.gpus <= training for seat in replicas):
        return "ipc"
    return "raytune_flat" if any(seat.gpus & training for seat in replicas) else "nccl"


def replica_env(backend: Backend) -> dict[str, str]:
    """What the processes of a replica need: vLLM takes memory handles, which are pickled, only when told so."""
    return {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if backend == "ipc" else {}


class ReplicaClient:
    """vLLM's `VLLMWeightSyncClient` over our replicas: one `receive` is a whole update, from pause to resume.

    Args: workers: GPUs of each replica (tensor times pipeline parallel). deadline: seconds of each call.
    """

    def __init__(self, replicas: Sequence[Any], *, workers: int, deadline: float) -> None:
        self._replicas, self._workers, self._deadline = list(replicas), workers, deadline
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each replica's workers have ranks of their own in the transfer's group, after the sender's."""
        refs = []
        for index, replica in enumerate(self._replicas):
            offset = {"rank_offset": 1 + index * self._workers} if "rank_offset" in init_info else {}
            refs.append(replica.init_transfer.remote({**init_info, **offset}))
        self._wait(refs, "join the transfer")

    def start_weight_update(self) -> None:
        """Part of `receive`."""

    def update_weights(self, update_info: Any) -> None:
        """Returns when all replicas serve the new version, or raises what the first one raised."""
        plain = _picklable(update_info)
        refs = [replica.receive.remote(plain, self.version) for replica in self._replicas]
        self._wait(refs, f"load weights {self.version}")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Part of `receive`."""

    def _wait(self, refs: list[Any], what: str) -> None:
        try:
            ray.get(refs, timeout=self._deadline)
        except GetTimeoutError:
            raise RolloutError(f"the replicas did not {what} within {self._deadline:g} s") from None


class DirectSender:
    """Lives in every trainer rank; rank 0 sends. All ranks call every method together.

    Args: workers: GPUs of each replica. deadline: of one version, in seconds.
    """

    def __init__(self, published: "Published", *, rank: int, device: "torch.device", deadline: float) -> None:
        self._published, self._rank, self._device, self._deadline = published, rank, device, deadline
        self._engine: Any = None

    def open(
        self, backend: Backend, replicas: Sequence[Any], *, workers: int, address: str = "", port: int = 0
    ) -> None:
        """Meet the replicas; again, with another port, after a replica was lost or `send` failed.

        Args: address, port: of rank 0, free, where NCCL's members find each other.
        """
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._client = ReplicaClient(replicas, workers=workers, deadline=self._deadline)
        info: Any = (
            NCCLTrainerInitInfo(address, port, 1 + workers * len(replicas), rank=self._rank)
            if backend == "nccl"
            else IPCTrainerInitInfo(rank=self._rank)
        )
        source = published_source(self._published, self._device)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=source)

    def send(self, version: int) -> None:
        """Give all replicas `version`. Raises RolloutError after the deadline: NCCL itself would wait for ever.

        The transfer runs in a thread of its own for that; after an error it may hang there, and `open` begins anew.
        """
        self._client.version = version
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self._engine.send_weights()
            except (RuntimeError, ValueError, ray.exceptions.RayError, RolloutError) as error:
                failure.append(error)

        thread = threading.Thread(target=work, name=f"send-weights-{version}", daemon=True)
        thread.start()
        thread.join(self._deadline)
        if thread.is_alive() or failure:
            reason = str(failure[0]) if failure else f"not within {self._deadline:g} s"
            raise RolloutError(f"weights {version} could not be sent from GPU to GPU: {reason}") from None


def published_source(published: "Published", device: "torch.device") -> "WeightSource":
    """The published weights as vLLM's trainer engines read them: names and shapes first, then tensors on the GPU."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class PublishedSource(WeightSource):
        """Every rank yields every tensor: with IPC each one shows its own GPU's copy."""

        def metadata(self) -> "list[ParamMeta]":
            return [ParamMeta(entry.name, entry.torch_dtype, entry.shape) for entry in published.entries]

        def __iter__(self) -> "Iterator[tuple[str, torch.Tensor]]":
            for entry, value in published.tensors():
                yield entry.name, value.to(device, entry.torch_dtype).contiguous()

    return PublishedSource()


def _picklable(update_info: Mapping[str, Any]) -> dict[str, Any]:
    """Handles of GPU memory hold types that vLLM's messages do not; they go pickled, as its HTTP client sends them."""
    handles = update_info.get("ipc_handles")
    plain = {key: value for key, value in update_info.items() if key != "ipc_handles" and value is not None}
    if handles is not None:
        plain["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
    return plain
