"""A replica's side of weight sync: verify, pause, load, commit, forget caches, resume - or stay paused.

Nothing is served between pause and resume, and an update that fails leaves the engine paused: a forward pass over half
a model would end its process. The replica is out of date then, until `receive` succeeds.
"""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytune.errors import RolloutError
from raytune.models.adapter_folder import verify_adapter
from raytune.models.updates import UpdateReader

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

# Adapters kept for answers that were begun with them.
_KEPT_ADAPTERS = 2


class EngineWeights:
    """The weights of one vLLM engine.

    Args: deadline: seconds for one update. Example: EngineWeights(engine, deadline=60.0)
    """

    def __init__(self, engine: "AsyncLLM", *, deadline: float) -> None:
        self._engine, self._deadline = engine, deadline
        self._lock = asyncio.Lock()
        self._entries: list[Any] = []
        self._reader = UpdateReader()
        self._adapters: list[LoRARequest] = []
        self._num_adapters = 0
        self._clock = _Clock()
        self.asleep = False
        """The engine has no memory for keys and values: it goes on when it is woken up, not after an update."""

    @property
    def adapter(self) -> "LoRARequest | None":
        """What new requests must name; None for the base weights."""
        return self._adapters[-1] if self._adapters else None

    async def init_transfer(self, info: dict[str, Any]) -> None:
        """Tell the engine once what will come; it raises when that is not what it was loaded from."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        request = WeightTransferInitRequest(init_info=info)
        await self._within("prepare weight transfer", self._engine.init_weight_transfer_engine(request))
        # After the engine agreed: what it refuses must not become what later updates are held against.
        self._entries = info.get("entries", [])

    async def receive(self, update: dict[str, Any], version: int) -> dict[str, float]:
        """Load `version`; returns seconds by part. Raises RolloutError and stays paused when it cannot."""
        async with self._lock:
            return await self._within(f"load weights {version}", self._receive(update, version))

    async def add_adapter(self, path: str, version: int) -> dict[str, float]:
        """Load a LoRA adapter under a name of its own, so that no cache of an earlier one is used for it."""
        async with self._lock:
            return await self._within(f"load adapter {version}", self._add_adapter(Path(path), version))

    async def _receive(self, update: dict[str, Any], version: int) -> dict[str, float]:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        clock = self._clock = _Clock()
        # The pause ends with a fixed sleep of 20 ms, in which the file can be read.
        await asyncio.gather(
            asyncio.to_thread(self._verify, update, version),
            self._engine.pause_generation(mode="keep", clear_cache=False),
        )
        clock.lap("verify_and_pause")
        await self._engine.start_weight_update()
        clock.lap("start")
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info=update))
        clock.lap("load")
        await self._engine.finish_weight_update(str(version))
        # Loading drops the adapters; they were made for the weights before anyway.
        self._adapters = []
        clock.lap("commit")
        await self._forget_caches()
        if not self.asleep:
            await self._engine.resume_generation()
        clock.lap("resume")
        return clock.laps

    async def _forget_caches(self) -> None:
        """Requests that were running compute their keys and values anew with the new weights."""
        if not await self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RolloutError("the prefix cache could not be reset; it holds keys and values of older weights")
        await self._engine.reset_mm_cache()
        await self._engine.reset_encoder_cache()

    async def _add_adapter(self, path: Path, version: int) -> dict[str, float]:
        from vllm.lora.request import LoRARequest

        clock = self._clock = _Clock()
        await asyncio.to_thread(verify_adapter, path)
        clock.lap("verify")
        # Never an id or name twice, not even for a version twice: vLLM would keep the old weights, or their cache.
        self._num_adapters += 1
        request = LoRARequest(f"version-{version}-{self._num_adapters}", self._num_adapters, str(path))
        if not await self._engine.add_lora(request):
            raise RolloutError(f"the engine did not take the adapter in {path}")
        clock.lap("load")
        self._adapters.append(request)
        for old in self._adapters[:-_KEPT_ADAPTERS]:
            await self._engine.remove_lora(old.lora_int_id)
        self._adapters = self._adapters[-_KEPT_ADAPTERS:]
        await self._engine.update_weight_version(str(version))
        clock.lap("commit")
        return clock.laps

    def _verify(self, update: dict[str, Any], version: int) -> None:
        """Look at the files before anything changes."""
        self._reader.verify(update, version, self._entries)

    async def _within(self, what: str, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._deadline):
                return await work
        except TimeoutError:
            raise RolloutError(
                f"the engine did not {what} within {self._deadline:g} s, it got to: {self._clock.last}"
            ) from None


class _Clock:
    """Seconds of each part, in order."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    @property
    def last(self) -> str:
        return next(reversed(self.laps), "nothing")

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now
