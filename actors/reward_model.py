"""A trained reward model as an actor: rows of many groups that come at about the same time are scored together."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors import stacks
from raytune.config.adapter import AdapterConfig
from raytune.config.model import ModelConfig
from raytune.config.reward import RewardConfig
from raytune.errors import RaytuneError, RewardError
from raytune.rewards.attempt import Attempt, describe
from raytune.rewards.base import Completion, RewardUnavailable

WINDOW = 0.02
"""Seconds that the first rows of a batch wait for more; a pass over the model takes longer."""
MAX_ROWS = 64
LOAD_DEADLINE = 1800.0
_LOADING_SHARE, _SCORING_SHARE = 0.2, 0.7
"""Of a function's time limit: it gives up by itself, and says why, before it is stopped."""
_MAX_WAITING = 10_000


class Scorer(Protocol):
    """A reward model in this process."""

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Score prompt and answer of each row, as token ids."""
        ...


# Made on the driver, called in the reward model's process.
@dataclass(frozen=True, slots=True)
class ModelJob:
    """Which reward model to load, and whose tokens it reads.

    Args: adapters: on the model, the last one with the head. below: the policy's adapters; a reward model that is an
    adapter too lies on what the policy merges of them before it trains.

    Example: ModelJob(policy=cfg.model, model=cfg.model, adapters=("saves/rm",), cutoff_len=2048)
    """

    policy: ModelConfig
    model: ModelConfig
    adapters: tuple[str, ...]
    cutoff_len: int
    below: AdapterConfig = field(default_factory=AdapterConfig)

    def __call__(self) -> Scorer:
        """Load it. Raises: ModelError for a folder that is no reward model, or one with another tokenizer."""
        import torch

        from raytune.models.folder import adapter_path, find_adapters
        from raytune.models.scorer import check_same_tokenizer, load_scorer

        below, _ = find_adapters(self.below)
        adapters = [str(path) for path in (*below, *map(adapter_path, self.adapters))]
        check_same_tokenizer(self.policy, self.model, adapters)
        on_gpu = torch.cuda.is_available() and ray.get_gpu_ids()
        device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        dtype = torch.bfloat16 if on_gpu else torch.float32
        return load_scorer(self.model, adapters, dtype=dtype, device=device, cutoff_len=self.cutoff_len)


def model_job(reward: RewardConfig, policy: ModelConfig, adapter: AdapterConfig, *, cutoff_len: int) -> ModelJob | None:
    """What reward_model, its type and its adapters ask for; None where no trained reward model is named.

    Args: policy, adapter: what is trained. cutoff_len: tokens of the longest prompt with its answer.
    """
    if reward.reward_model is None:
        return None
    match reward.reward_model_type:
        case "api":
            return None
        case "lora":
            return ModelJob(policy, policy, (reward.reward_model,), cutoff_len, adapter)
        case "full":
            own = {"model_name_or_path": reward.reward_model, "model_revision": "main", "train_from_scratch": False}
            return ModelJob(policy, policy.model_copy(update=own), reward.reward_model_adapters, cutoff_len)


@dataclass(slots=True)
class _Waiting:
    rows: Sequence[Sequence[int]]
    scores: asyncio.Future[list[float]]


class RewardModelWorker:
    """Holds a reward model.

    Args: make: loads it; called in this process, once after each start.
    """

    def __init__(self, make: Callable[[], Scorer], *, window: float = WINDOW, max_rows: int = MAX_ROWS) -> None:
        stacks.register("reward model")
        self._make = make
        self._window, self._max_rows = window, max_rows
        self._loading: asyncio.Task[Scorer] | None = None
        self._waiting: list[_Waiting] = []
        self._turn: asyncio.Task[None] | None = None
        self._num_batches = 0

    async def load(self) -> None:
        """Load the model, once. Errors: what loading it raises."""
        await self._loaded()

    async def _loaded(self) -> Scorer:
        # Not in __init__: what that raises reaches nobody but the log, and a restarted actor loads with the first rows.
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._loading)

    # A model that hangs is killed by who waits for it: to ask the next one the same would kill that while it loads.
    @ray.method(max_task_retries=0)
    async def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Score rows of token ids, in a batch with those of other callers."""
        one = _Waiting(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if self._turn is None or self._turn.done():
            self._turn = asyncio.get_running_loop().create_task(self._work())
        return await one.scores

    async def num_batches(self) -> int:
        """Passes over the model so far."""
        return self._num_batches

    async def _work(self) -> None:
        """Score what waits, batch by batch, until nothing does."""
        while self._waiting:
            if sum(len(one.rows) for one in self._waiting) < self._max_rows:
                await asyncio.sleep(self._window)
            batch = self._cut()
            rows = [row for one in batch for row in one.rows]
            self._num_batches += 1
            with Attempt() as attempt:
                scorer = await self._loaded()
                scores = await asyncio.to_thread(scorer.score, rows)
            if attempt.raised is not None:
                _refuse(batch, describe(attempt.raised))
                continue
            start = 0
            for one in batch:
                one.scores.set_result(list(scores[start : start + len(one.rows)]))
                start += len(one.rows)

    def _cut(self) -> list[_Waiting]:
        """The callers whose rows make the next batch; one alone may have more rows than that."""
        taken, count = [self._waiting[0]], len(self._waiting[0].rows)
        for one in self._waiting[1:]:
            if count + len(one.rows) > self._max_rows:
                break
            taken.append(one)
            count += len(one.rows)
        self._waiting = self._waiting[len(taken) :]
        return taken


def _refuse(batch: Sequence[_Waiting], why: str) -> None:
    for one in batch:
        one.scores.set_exception(RewardUnavailable(f"the reward model cannot score: {why}"))


class ModelReward:
    """A reward function that asks a RewardModelWorker.

    A model that does not answer in time is started anew, unless it is still loading: who tries the group again waits
    for that first (await_reward_model).

    Args: name: of the worker. seconds: deadline of a batch.
    """

    def __init__(self, name: str, *, seconds: float) -> None:
        self._name = name
        self._loading = _LOADING_SHARE * seconds
        self._scoring = _SCORING_SHARE * seconds
        self.trouble: str | None = None
        """Why the last call failed, if it did."""

    async def __call__(self, completions: Sequence[Completion], token_rows: Sequence[Sequence[int]]) -> list[float]:
        """Raises RewardUnavailable if the model died, hangs, or cannot score."""
        self.trouble = None
        worker = ray.get_actor(self._name)
        loaded = False
        try:
            await asyncio.wait_for(worker.load.remote(), self._loading)
            loaded = True
            return await asyncio.wait_for(worker.score.remote(token_rows), self._scoring)
        except RayTaskError as error:
            self.trouble = str(error.cause)
        except RayActorError:
            self.trouble = "the reward model's process died"
        except TimeoutError:
            self.trouble = "the reward model is loading"
            if loaded:
                self.trouble = f"the reward model gave no scores within {self._scoring:g} s"
                ray.kill(worker, no_restart=False)
        raise RewardUnavailable(self.trouble)


def start_reward_model(make: Callable[[], Scorer], place: dict[str, Any]) -> tuple[str, Any]:
    """Start the actor in a bundle of its own; returns its name, by which workers find it, and its handle.

    Args: make: a ModelJob. place: Ray's options (num_gpus, scheduling_strategy, ...).
    """
    name = f"reward-model-{uuid4().hex}"
    actor = ray.remote(RewardModelWorker).options(
        name=name, max_restarts=-1, max_task_retries=2, max_concurrency=_MAX_WAITING, **place
    )
    return name, actor.remote(make)


def await_reward_model(worker: Any) -> None:
    """Wait until the model is loaded. Errors: what loading raises; RewardError if its process dies or is too slow."""
    try:
        ray.get(worker.load.remote(), timeout=LOAD_DEADLINE)
    except (RayError, GetTimeoutError) as error:
        raise _cause(error) from None


async def model_loaded(name: str) -> None:
    """The same in an event loop, for a model that was started anew."""
    try:
        await asyncio.wait_for(ray.get_actor(name).load.remote(), LOAD_DEADLINE)
    except (RayError, TimeoutError) as error:
        raise _cause(error) from None


def _cause(error: BaseException) -> RaytuneError:
    match error:
        case RayTaskError():
            inner = error.cause
            return inner if isinstance(inner, RaytuneError) else RewardError(f"the reward model does not load: {inner}")
        case RayActorError():
            return RewardError("the reward model's process died while it loaded", fix="Most often memory ran out.")
        case _:
            return RewardError(f"the reward model did not load within {LOAD_DEADLINE:g} s")
