"""A rollout replica on vLLM: its AsyncLLM in this actor, the engine's core in a process of its own.

Tokens in, tokens out, with the log-probs of the behaviour policy. The core may die or freeze: nobody but a call with
a deadline notices the latter, so every call has one, and the engine can be built again in the same actor.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import ray

from actors.rollout_pulse import Pulse, engine_processes, kill
from actors.rollout_replica import CONTROL, Health, Replica, ReplicaSettings, Translated
from actors.vllm_memory import give_up_names
from actors.vllm_plugin import BACKEND
from raytune.errors import ConfigError, ReplicaLostError, RolloutError
from raytune.stages.samples import Completion, Finish, Sampling, VersionSpan

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    from actors.weights_vllm import EngineWeights

T = TypeVar("T")

FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}
_FIRST = "default"
"""What vLLM calls the weights that it read from disk."""
_GIB = 1024**3
_CPU_TOKENS = 4096
"""Most tokens of one step of the engine on a CPU."""
_CPU_BLOCK = 32
"""Tokens of a prompt that answers share at least; the smallest that the kernels take, for prompts may be short."""


def vllm_env(settings: ReplicaSettings, *, gpu: bool) -> dict[str, str]:
    """Environment that the actor must be started with; vLLM and OpenMP read it when they are loaded."""
    shared = {"OMP_NUM_THREADS": str(settings.threads), "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if gpu:
        return shared
    return {
        **shared,
        # Several engines share the cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The worker lives in the core's process, one hop less.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Models compiled ahead of time cannot be loaded again on a CPU (vLLM 0.32); the plain cache serves every start.
        "VLLM_USE_AOT_COMPILE": "0",
    }


class VllmReplica(Replica):
    """See Replica. The engine belongs to the replica's own event loop and is touched nowhere else."""

    def __init__(self, settings: ReplicaSettings) -> None:
        super().__init__(settings)
        self._engine: AsyncLLM | None = None
        self._weights: EngineWeights | None = None
        self._adapters: dict[str, int] = {}
        self._in_step = True
        self._numbers = itertools.count()
        self._pulse: Pulse = Pulse(None, settings.busy_deadline)

    @ray.method(concurrency_group=CONTROL)
    async def build(self) -> Health:
        """Build the engine, or build it anew after its death: weights 0, those on disk, and no adapter.

        Errors: ConfigError for arguments that vLLM does not know, RolloutError.
        """
        deadline = self.settings.build_deadline
        await self._home.run(asyncio.to_thread(self._build), deadline=deadline, what="build the engine")
        return await self._home.run(self._health(), deadline=deadline, what="answer for the first time")

    def _build(self) -> None:
        # Not on an event loop: vLLM starts its output handler at the first request, in the loop that this comes from.
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.weights_vllm import EngineWeights

        self._close()
        settings = replace(self.settings, model=self._model_folder())
        arguments = engine_arguments(settings, gpu=bool(ray.get_gpu_ids()))
        check_arguments(arguments, AsyncEngineArgs.__dataclass_fields__)
        with Translated("vLLM cannot start"):
            engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
            if self.settings.workers > 1:
                give_up_names(engine_processes())
        self._weights = EngineWeights(engine, deadline=self.settings.update_deadline)
        self._pulse = Pulse(engine, self.settings.busy_deadline)
        self._engine, self._adapters, self._stale, self._in_step = engine, {}, False, True

    def _close(self) -> None:
        """End the engine. Its processes are killed first: a frozen one would keep the shutdown waiting."""
        if self._engine is None:
            return
        engine, self._engine, self._weights = self._engine, None, None
        for process in engine_processes():
            kill(process)
        with Translated("the engine did not shut down"):
            engine.shutdown(timeout=5.0)

    async def _draw(
        self, ids: Sequence[int], sampling: Sampling, *, count: int, seed: int, limit: int
    ) -> list[Completion]:
        engine, weights = self._parts()
        adapter = weights.adapter
        params = sampling_params(sampling, count=count, seed=seed, limit=limit)
        prompt: Any = {"prompt_token_ids": list(ids)}
        final: RequestOutput | None = None
        with self._translated("drawing failed"):
            name = f"{next(self._numbers)}"
            async for output in engine.generate(prompt, params, request_id=name, lora_request=adapter):
                final = output
        if final is None or len(final.outputs) != count:
            raise ReplicaLostError("the engine gave up a request")
        fixed = None if adapter is None else self._adapters[adapter.lora_name]
        return [_completion(one, fixed) for one in final.outputs]

    async def _health(self) -> Health:
        _, weights = self._parts()
        with self._translated("the engine does not answer"):
            version = await self._pulse.version()
        if version is None:
            return Health(-1, self._stale, True, self._running)
        number = _number(version)
        if weights.adapter is not None:
            number = self._adapters[weights.adapter.lora_name]
        return Health(number, self._stale, self._updating, self._running)

    @ray.method(concurrency_group=CONTROL)
    async def pause(self) -> None:
        """Halt between two tokens until `resume`; what is asked for meanwhile waits."""
        await self._control(self._parts()[0].pause_generation(mode="keep", clear_cache=False), "pause")

    @ray.method(concurrency_group=CONTROL)
    async def resume(self) -> None:
        """Go on. Errors: RolloutError for half an update, which must be completed first."""
        if self._stale:
            raise RolloutError("the engine has half an update; it can go on with whole weights only")
        await self._control(self._parts()[0].resume_generation(), "resume")

    @ray.method(concurrency_group=CONTROL)
    async def sleep(self, level: int = 1) -> None:
        """Give GPU memory back, for whoever takes turns with the engine; on a CPU it only halts.

        What was being drawn is drawn on after waking up, with its keys and values computed anew.
        """
        engine, weights = self._parts()
        weights.asleep = True
        await self._turn(engine.sleep(level, mode="keep"), "sleep")

    @ray.method(concurrency_group=CONTROL)
    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take GPU memory again; of weights given up by level 2 a new version must be received."""
        engine, weights = self._parts()
        if await self._turn(engine.wake_up(tags), "wake up"):
            weights.asleep = False

    async def _turn(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """End an engine that fails in it: half awake it answers heartbeats, keeps its memory and draws nothing."""
        done = False
        try:
            result = await self._control(work, what)
            done = True
        finally:
            if not done:
                await self._end()
        return result

    @ray.method(concurrency_group=CONTROL)
    async def init_transfer(self, info: dict[str, Any]) -> None:
        """See EngineWeights.init_transfer."""
        await self._control(self._parts()[1].init_transfer(info), "prepare weight transfer")

    @ray.method(concurrency_group=CONTROL)
    async def receive(self, update: dict[str, Any], version: int) -> dict[str, float]:
        """Take weights `version`, and go on with answers under way; returns seconds by part.

        Errors: RolloutError. The engine stays paused and the replica stale then, until an update succeeds.
        """
        weights = self._parts()[1]
        return await self._update(
            lambda: self._guarded(weights.receive(update, version), "an update failed"), f"load weights {version}"
        )

    @ray.method(concurrency_group=CONTROL)
    async def add_adapter(self, path: str, version: int) -> dict[str, float]:
        """Draw new answers with the LoRA adapter in `path`; those under way keep theirs. Returns seconds by part."""
        return await self._update(lambda: self._add_adapter(path, version), f"load adapter {version}")

    async def _add_adapter(self, path: str, version: int) -> dict[str, float]:
        weights = self._parts()[1]
        laps = await self._guarded(weights.add_adapter(path, version), "an adapter could not be loaded")
        adapter = weights.adapter
        assert adapter is not None
        self._adapters[adapter.lora_name] = version
        return laps

    @ray.method(concurrency_group=CONTROL)
    async def core_pids(self) -> list[int]:
        """Processes of the engine."""
        return [process.pid for process in engine_processes()]

    @ray.method(concurrency_group=CONTROL)
    async def shutdown(self) -> None:
        """End the engine's processes."""
        await self._end()

    async def _end(self) -> None:
        await self._home.run(asyncio.to_thread(self._close), deadline=self.settings.control_deadline, what="shut down")

    def _parts(self) -> "tuple[AsyncLLM, EngineWeights]":
        if self._engine is None or self._weights is None:
            raise ReplicaLostError("the replica has no engine yet")
        if not self._in_step:
            raise ReplicaLostError("a worker of the engine failed, and those beside it are out of step")
        return self._engine, self._weights

    async def _control(self, work: Coroutine[Any, Any, T], what: str) -> T:
        guarded = self._guarded(work, f"the engine could not {what}")
        return await self._home.run(guarded, deadline=self.settings.control_deadline, what=what)

    async def _guarded(self, work: Coroutine[Any, Any, T], what: str) -> T:
        try:
            with self._translated(what):
                return await work
        except RolloutError as error:
            # vLLM reads the workers' answers up to the first that failed; the others' would be taken for later ones.
            if self.settings.workers > 1 and error.__cause__ is not None:
                self._in_step = False
            raise

    def _translated(self, what: str) -> Translated:
        from vllm.v1.engine.exceptions import EngineDeadError

        return Translated(what, lost=(EngineDeadError,))


def engine_arguments(settings: ReplicaSettings, *, gpu: bool) -> dict[str, Any]:
    """AsyncEngineArgs of a replica; the user's own win over ours."""
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_length,
        "max_num_seqs": settings.max_sequences,
        # Compiling on a CPU takes a minute and gains an eighth: matrix products are libraries' there.
        "enforce_eager": not gpu if settings.eager is None else settings.eager,
        "enable_prefix_caching": True,
        "trust_remote_code": settings.trusts_code,
        "disable_log_stats": True,
        # After temperature and truncation: what the tokens were really drawn from.
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": BACKEND},
    }
    if gpu:
        arguments["gpu_memory_utilization"] = settings.gpu_memory
        arguments["enable_sleep_mode"] = settings.sleeps
    else:
        # Of each worker, which has its part of the heads.
        arguments["kv_cache_memory_bytes"] = int(settings.cache_gib * _GIB / settings.workers)
        # Whole prompts only: in the middle of one vLLM turns a request's generator back, which a CPU's cannot do.
        arguments |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(settings.max_length, _CPU_TOKENS),
            "block_size": _CPU_BLOCK,
        }
    if settings.workers > 1:
        # Processes below the engine's core, in this replica's bundle: by itself vLLM would ask Ray for actors.
        arguments |= {"tensor_parallel_size": settings.workers, "distributed_executor_backend": "mp"}
    if settings.adapter_rank:
        # Two, for answers that were begun with the adapter before.
        arguments |= {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 4, "max_lora_rank": settings.adapter_rank}
    return {**arguments, **settings.engine_args}


def check_arguments(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first argument that vLLM does not have."""
    for name in arguments:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ConfigError(
                f"vLLM has no engine argument '{name}'",
                where="vllm_config",
                fix=f"Did you mean '{near[0]}'?" if near else "See the arguments of vllm.AsyncEngineArgs.",
            )


def sampling_params(sampling: Sampling, *, count: int, seed: int, limit: int) -> "SamplingParams":
    """In vLLM's terms; vLLM gives answer i of a group the seed `seed` + i."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        n=count,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=seed,
        max_tokens=limit,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_ids),
        include_stop_str_in_output=True,
        # Only the tokens that the sampling names end an answer, not those of the model's generation config besides.
        ignore_eos=True,
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(sampling.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: "CompletionOutput", adapter: int | None) -> Completion:
    """One answer. adapter: the version of the adapter that drew all of it."""
    flat: Any = output.logprobs
    if output.finish_reason not in FINISHES or flat is None:
        raise ReplicaLostError(f"the engine ended an answer with '{output.finish_reason}'")
    ids = np.array(output.token_ids, np.int32)
    spans = tuple(VersionSpan(_number(s.version), s.start, s.end) for s in output.weight_versions or ())
    return Completion(
        ids=ids,
        logprobs=np.array(flat.logprobs, np.float32)[flat.start_indices],
        mask=np.ones(len(ids), np.bool_),
        versions=spans if adapter is None else (VersionSpan(adapter, 0, len(ids)),),
        finish=FINISHES[output.finish_reason],
    )


def _number(version: str) -> int:
    return 0 if version == _FIRST else int(version)
