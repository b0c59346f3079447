"""A rollout replica on transformers, where vLLM is not installed; slow, and equal to the bit from run to run."""

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import ray

from actors.rollout_replica import CONTROL, Health, Replica, ReplicaSettings, Translated
from raytune.errors import ReplicaLostError, RolloutError
from raytune.rewards.attempt import Attempt
from raytune.stages.samples import Completion, Sampling

T = TypeVar("T")
_POLL = 0.2


class HfReplica(Replica):
    """One thread owns the model: it draws a group at a time, and takes new weights between two tokens."""

    def __init__(self, settings: ReplicaSettings) -> None:
        super().__init__(settings)
        self._model: Any = None
        self._device = "cpu"
        self._version = 0
        self._adapter: str | None = None
        self._groups: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._urgent: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._going = threading.Event()
        self._going.set()
        self._closed = False
        self._entries: list[Any] = []
        self._reader: Any = None
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def _work(self) -> None:
        while not self._closed:
            self._take_urgent()
            try:
                group = self._groups.get(timeout=_POLL)
            except queue.Empty:
                continue
            group()

    def _take_urgent(self) -> None:
        while not self._urgent.empty():
            self._urgent.get()()

    def _between(self) -> int:
        """Between two tokens: new weights first, and a halt while paused."""
        self._take_urgent()
        while not self._going.wait(_POLL):
            self._take_urgent()
            self._require_model()
        self._require_model()
        return self._version

    def _require_model(self) -> Any:
        if self._model is None:
            raise ReplicaLostError("the replica has no model")
        return self._model

    async def _on_model_thread(self, line: "queue.SimpleQueue[Callable[[], None]]", work: Callable[[], T]) -> T:
        """Queue `work` for the model's thread and wait for it. A caller that gave up takes its work out of the line."""
        future: Future[T] = Future()
        line.put(functools.partial(_fulfil, future, work))
        return await asyncio.wrap_future(future)

    async def _draw(
        self, ids: Sequence[int], sampling: Sampling, *, count: int, seed: int, limit: int
    ) -> list[Completion]:
        from actors.rollout_sample import draw_answers

        model = self._require_model()
        decode = (lambda some: str(self._text().decode(list(some)))) if sampling.stop else None
        work = functools.partial(
            draw_answers,
            model,
            ids,
            sampling,
            count=count,
            seed=seed,
            limit=limit,
            between=self._between,
            decode=decode,
        )
        with Translated("drawing failed"):
            return await self._on_model_thread(self._groups, work)

    async def _health(self) -> Health:
        self._require_model()
        return Health(self._version, self._stale, self._updating, self._running)

    @ray.method(concurrency_group=CONTROL)
    async def build(self) -> Health:
        """Load the model from disk: weights 0."""
        with Translated(f"the model {self.settings.model} cannot be loaded"):
            await asyncio.wait_for(asyncio.to_thread(self._load), self.settings.build_deadline)
        return await self._health()

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from raytune.models.updates import UpdateReader

        torch.set_num_threads(self.settings.threads)
        model: Any = AutoModelForCausalLM.from_pretrained(
            self._model_folder(), dtype=self.settings.dtype, trust_remote_code=self.settings.trusts_code
        )
        self._device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
        self._model = model.to(self._device).eval()
        self._reader, self._entries = UpdateReader(), []
        self._version, self._adapter, self._stale = 0, None, False
        self._going.set()

    @ray.method(concurrency_group=CONTROL)
    async def pause(self) -> None:
        """Halt between two tokens until `resume`; what is asked for meanwhile waits."""
        self._going.clear()

    @ray.method(concurrency_group=CONTROL)
    async def resume(self) -> None:
        self._going.set()

    @ray.method(concurrency_group=CONTROL)
    async def sleep(self, level: int = 1) -> None:
        """Halt, and leave a GPU to others; weights are kept in the host's memory at any `level`."""
        self._going.clear()
        await self._move("cpu")

    @ray.method(concurrency_group=CONTROL)
    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take the weights back, and go on once the cache is asked for; it is made anew for each answer."""
        if tags is None or "weights" in tags:
            await self._move(self._device)
        if tags is None or "kv_cache" in tags:
            self._going.set()

    async def _move(self, device: str) -> None:
        """A model that is left on two devices is given up: the router has it loaded again."""
        model, moved = self._require_model(), self._device == "cpu"
        try:
            if not moved:
                with Translated(f"the model cannot be moved to {device}"):
                    await self._on_model_thread(self._urgent, lambda: model.to(device))
                moved = True
        finally:
            if not moved:
                self._model = None

    @ray.method(concurrency_group=CONTROL)
    async def init_transfer(self, info: dict[str, Any]) -> None:
        """Tell what will come: entries of name, dtype and shape; updates are checked against them.

        Errors: RolloutError if these are not the model's parameters, by the names that its checkpoint has.
        """
        model, entries = self._require_model(), info.get("entries", [])
        _check_sizes(entries, model)
        strange, absent = misfits(entries, model) if entries else ([], [])
        if strange or absent:
            raise RolloutError(
                f"transformers keeps the weights of a {type(model).__name__} in other tensors than its "
                f"checkpoint: {len(strange)} of {len(entries)} do not fit ({', '.join(strange[:2])}), "
                f"{len(absent)} would not come ({', '.join(absent[:2])})",
                fix="Use rollout_backend: vllm.",
            )
        self._entries = entries

    @ray.method(concurrency_group=CONTROL)
    async def receive(self, update: dict[str, Any], version: int) -> dict[str, float]:
        """Take weights `version` between two tokens; returns seconds.

        Args: update: kind "flat" or "safetensors", and path of slot-N.json or of a file or folder, on this node.
        Errors: RolloutError; the weights are untouched if they do not fit the model, and the replica is stale.
        """
        return await self._update(
            lambda: self._swap(functools.partial(self._copy, update, version), version), f"load weights {version}"
        )

    @ray.method(concurrency_group=CONTROL)
    async def add_adapter(self, path: str, version: int) -> dict[str, float]:
        """Draw with the LoRA adapter in `path` from the next token on; returns seconds."""
        return await self._update(
            lambda: self._swap(functools.partial(self._adapt, path, version), version), "load an adapter"
        )

    async def _swap(self, change: Callable[[], None], version: int) -> dict[str, float]:
        def work() -> None:
            change()
            self._version = version

        started = time.perf_counter()
        with Translated(f"weights {version} cannot be loaded"):
            await self._on_model_thread(self._urgent, work)
        return {"load": time.perf_counter() - started}

    def _copy(self, update: dict[str, Any], version: int) -> None:
        import torch

        if self._entries:
            self._reader.verify(update, version, self._entries)
        own = self._model.state_dict()
        given = dict(self._reader.tensors(update))
        for name, tensor in given.items():
            if name not in own or own[name].shape != tensor.shape:
                raise RolloutError(
                    f"the model has no parameter {name} of shape {tuple(tensor.shape)}", where=str(update["path"])
                )
        with torch.no_grad():
            for name, tensor in given.items():
                own[name].copy_(tensor)

    def _adapt(self, path: str, version: int) -> None:
        from peft import PeftModel

        name = f"v{version}"
        if isinstance(self._model, PeftModel):
            self._model.load_adapter(path, adapter_name=name)
            self._model.set_adapter(name)
            if self._adapter is not None and self._adapter != name:
                self._model.delete_adapter(self._adapter)
        else:
            self._model = PeftModel.from_pretrained(self._model, path, adapter_name=name).eval()
        self._adapter = name

    @ray.method(concurrency_group=CONTROL)
    async def shutdown(self) -> None:
        """End the model's thread; the replica does not draw any more."""
        self._closed = True
        self._model = None


def misfits(entries: Sequence[Sequence[Any]], model: Any) -> tuple[list[str], list[str]]:
    """Names of what the model cannot take, and of its parameters that would not come.

    Args: entries: name, dtype and shape of each tensor that will come.
    """
    given = {name: tuple(shape) for name, _, shape in entries}
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    strange = [name for name, shape in given.items() if own.get(name) != shape]
    return strange, [name for name, _ in model.named_parameters() if name not in given]


def _check_sizes(entries: Sequence[Sequence[Any]], model: Any) -> None:
    own = model.state_dict()
    for name, _, shape in entries:
        if name in own and tuple(own[name].shape) != tuple(shape):
            raise RolloutError(
                f"{name} is {list(shape)} in the trainer and {list(own[name].shape)} in the replica's model",
                fix="Save the resized model first, and start trainer and rollouts from it.",
            )


def _fulfil(future: "Future[T]", work: Callable[[], T]) -> None:
    """Run `work` for a future, unless who waited for it has gone."""
    if not future.set_running_or_notify_cancel():
        return
    with Attempt() as attempt:
        future.set_result(work())
    if attempt.raised is not None:
        future.set_exception(attempt.raised)
