"""What every rollout replica is, whatever its engine: an async actor that turns a prompt into a group of answers.

generate runs in Ray's default concurrency group, control calls in one of their own, so that a thousand waiting prompts
never keep a weight update out. Ray gives each group its own event loop in its own thread; an engine belongs to one
loop, so both hop to the replica's own.
"""

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
import ray

from actors import stacks
from raytune.config.model import ModelConfig
from raytune.errors import RaytuneError, ReplicaLostError, RolloutError
from raytune.stages.environment import Environment, converse, load_environment
from raytune.stages.environment_loop import Environments
from raytune.stages.samples import Completion, Group, Prompt, Sampling

T = TypeVar("T")
CONTROL = "control"
_CONTROL_SLOTS = 16
_GENERATE_SLOTS = 1000
_TALKS = 0.9
"""Share of a request's time after which its conversations end themselves, for there to be an answer at all."""


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What an engine is built from, again after each restart.

    Args: model: name or folder; every node finds its own copy. max_length: most tokens of prompt and answer together.
    max_sequences: answers drawn at the same time. text: whose tokenizer turns texts of environments and stop strings
    into tokens; None is `model` as it is. environment: import path of the class behind multi-turn answers, of
    max_turns at most and environment_seconds for each of its steps. adapter_rank: largest LoRA rank, 0 for none.
    sleeps: it takes turns on its GPU with a trainer rank. eager: do not compile; None is so on a CPU. workers:
    processes that share the model, each on a GPU of its own (tensor parallel). cache_gib: memory of all their KV
    caches on a CPU. threads: of each worker. engine_args: further arguments of the engine. Deadlines in seconds;
    busy: for one step of the engine.

    Example: ReplicaSettings("/models/smollm2", dtype="bfloat16", max_length=512)
    """

    model: str
    text: ModelConfig | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_length: int = 4096
    max_sequences: int = 64
    environment: str | None = None
    max_turns: int = 8
    environment_seconds: float = 60.0
    adapter_rank: int = 0
    sleeps: bool = False
    eager: bool | None = None
    gpu_memory: float = 0.7
    workers: int = 1
    cache_gib: float = 1.0
    threads: int = 1
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    request_deadline: float = 1800.0
    busy_deadline: float = 120.0
    control_deadline: float = 60.0
    update_deadline: float = 180.0
    build_deadline: float = 900.0

    @property
    def trusts_code(self) -> bool:
        """Whether code that comes with the model may run."""
        return self.text is not None and self.text.trust_remote_code


# Made by a replica, read by the router.
@dataclass(frozen=True, slots=True)
class Health:
    """A replica that answered: the version of its weights, whether it missed an update, prompts it works on.

    busy: it takes new weights, or its engine computes and has no time to answer; the version is -1 then.

    Example: Health(version=3, stale=False, busy=False, running=12)
    """

    version: int
    stale: bool
    busy: bool
    running: int


class LoopThread:
    """An event loop in a thread of its own; work comes from any other loop."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name=name, daemon=True).start()

    async def run(self, work: Coroutine[Any, Any, T], *, deadline: float, what: str) -> T:
        """Do it there and wait here. Raises ReplicaLostError, and cancels the work, after `deadline` seconds."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            # Waited for on this side: the other loop may itself be stuck.
            return await asyncio.wait_for(asyncio.wrap_future(future), deadline)
        except TimeoutError:
            raise ReplicaLostError(f"an engine did not finish within {deadline:g} s: {what}") from None


class Translated(AbstractContextManager[None]):
    """Turns whatever an engine raises into our errors: `lost` kinds into ReplicaLostError, others into RolloutError."""

    def __init__(self, what: str, lost: tuple[type[Exception], ...] = ()) -> None:
        self._what, self._lost = what, lost

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(raised, Exception) or isinstance(raised, RaytuneError):
            return
        text = f"{self._what}: {type(raised).__name__}: {raised}"
        raise (ReplicaLostError(text) if isinstance(raised, self._lost) else RolloutError(text)) from raised


def seed_of(*parts: int) -> int:
    """A seed below 2^31 that depends on all of its parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0]) >> 1


class Replica(ABC):
    """The part without an engine. Subclasses build one, draw with it and give it weights."""

    def __init__(self, settings: ReplicaSettings) -> None:
        stacks.register("rollout replica")
        self.settings = settings
        self._home = LoopThread("rollouts")
        self._environments: Environments | None = None
        if settings.environment is not None:
            self._environments = Environments(load_environment(settings.environment), settings.environment_seconds)
        self._tokenizer: Any = None
        self._running = 0
        self._updating = False
        self._stale = False

    @abstractmethod
    async def _draw(
        self, ids: Sequence[int], sampling: Sampling, *, count: int, seed: int, limit: int
    ) -> list[Completion]:
        """`count` answers of at most `limit` tokens to `ids`; answer i's seed is `seed` + i."""

    @abstractmethod
    async def _health(self) -> Health:
        """Ask the engine itself, so that a frozen one does not answer."""

    async def generate(self, prompt: Prompt, sampling: Sampling, group_size: int) -> Group:
        """The answers to one prompt.

        Errors: RolloutError for a prompt that no engine can take; ReplicaLostError if another replica could do it.
        """
        started = time.perf_counter()
        limit = min(sampling.max_new_tokens, self.settings.max_length - len(prompt.ids))
        if limit < 1:
            raise RolloutError(
                f"the prompt has {len(prompt.ids)} tokens, the engines take {self.settings.max_length} with the answer",
                where=f"prompt {prompt.number}, row {prompt.row}",
                fix="Drop such rows, or raise vllm_maxlen.",
            )
        if self._stale:
            raise ReplicaLostError("the replica missed a weight update")
        self._running += 1
        try:
            answers, baseline = await self._home.run(
                self._all_answers(prompt, sampling, group_size, limit),
                deadline=self.settings.request_deadline,
                what=f"draw {sampling.num_drawn(group_size)} answers to prompt {prompt.number}",
            )
        finally:
            self._running -= 1
        return Group(prompt, tuple(answers), sampling, time.perf_counter() - started, baseline)

    async def _all_answers(
        self, prompt: Prompt, sampling: Sampling, size: int, limit: int
    ) -> tuple[list[Completion], Completion | None]:
        """The answers of a group, and the greedy one if the sampling asks for it."""
        if not sampling.greedy_baseline:
            return await self._answers(prompt, sampling, size, limit), None
        answers, greedy = await asyncio.gather(
            self._answers(prompt, sampling, size, limit), self._answers(prompt, sampling.likeliest, 1, limit)
        )
        return answers, greedy[0]

    async def _answers(self, prompt: Prompt, sampling: Sampling, size: int, limit: int) -> list[Completion]:
        seed, end = seed_of(sampling.seed, prompt.number), time.monotonic() + _TALKS * self.settings.request_deadline
        first = await self._draw(prompt.ids.tolist(), sampling, count=size, seed=seed, limit=limit)
        if self._environments is None:
            return first
        new = self._environments.new
        talks = [
            asyncio.ensure_future(self._talk(new(), prompt, sampling, limit, place, one, end - time.monotonic()))
            for place, one in enumerate(first)
        ]
        try:
            with Translated("a conversation failed"):
                return list(await asyncio.gather(*talks))
        finally:
            # Where one failed, the others would draw on for nobody.
            for one in talks:
                one.cancel()

    async def _talk(
        self,
        environment: Environment,
        prompt: Prompt,
        sampling: Sampling,
        budget: int,
        place: int,
        first: Completion,
        seconds: float,
    ) -> Completion:
        async def draw(ids: Sequence[int], limit: int) -> Completion:
            seed = seed_of(sampling.seed, prompt.number, place, len(ids))
            return (await self._draw(ids, sampling, count=1, seed=seed, limit=limit))[0]

        tokenizer = self._text()
        return await converse(
            environment,
            prompt,
            first,
            draw,
            budget=budget,
            max_turns=self.settings.max_turns,
            time_limit=seconds,
            encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
            decode=lambda ids: str(tokenizer.decode(list(ids))),
            vocabulary=len(tokenizer),
        )

    def _model_folder(self) -> str:
        """Where this node has the model; it is made or downloaded if need be."""
        from raytune.models.embedded import resolve_model_path

        source = self.settings.text or ModelConfig(model_name_or_path=self.settings.model)
        return resolve_model_path(
            self.settings.model, revision=source.model_revision, cache_dir=source.cache_dir, token=source.hf_hub_token
        )

    def _text(self) -> Any:
        """The tokenizer; only environments and stop strings need it."""
        if self._tokenizer is None:
            from raytune.models.tokenizer import load_tokenizer

            self._tokenizer = load_tokenizer(self.settings.text or ModelConfig(model_name_or_path=self.settings.model))
        return self._tokenizer

    @ray.method(concurrency_group=CONTROL)
    async def node(self) -> str:
        """Id of the node it runs on; it answers without the engine."""
        return ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group=CONTROL)
    async def health(self) -> Health:
        """Raises ReplicaLostError if the engine is dead or does not answer in time."""
        if self._updating:
            # An update may keep the engine busy for long; it has a deadline of its own.
            return Health(-1, self._stale, True, self._running)
        return await self._home.run(self._health(), deadline=self.settings.control_deadline, what="answer")

    @ray.method(concurrency_group=CONTROL)
    async def version(self) -> int:
        """Of the weights that the next token is drawn from. Errors as in `health`."""
        found = await self._home.run(self._health(), deadline=self.settings.control_deadline, what="say its version")
        return found.version

    async def _update(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> T:
        """Give the engine weights; the replica is stale, and serves nothing new, until that has succeeded."""
        self._updating, done = True, False
        try:
            result = await self._home.run(work(), deadline=self.settings.update_deadline, what=what)
            done = True
        finally:
            self._updating, self._stale = False, not done
        return result


def start_replica(
    kind: type[Replica],
    settings: ReplicaSettings,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    strategy: Any = "DEFAULT",
    env: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Any:
    """Start the actor of a replica; its engine is built by its `build`, which the router calls.

    Ray starts a killed process again in the same place; what it was doing fails, and is done elsewhere.
    """
    # Ray takes it; its annotations of `remote` do not know it.
    groups: dict[str, Any] = {"concurrency_groups": {CONTROL: _CONTROL_SLOTS}}
    actor: Any = ray.remote(**groups)(kind)
    return actor.options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=_GENERATE_SLOTS,
        scheduling_strategy=strategy,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(settings.threads), **(env or {})}},
        name=name,
    ).remote(settings)
