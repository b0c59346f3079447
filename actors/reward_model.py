"""A trained reward model as an actor: rows of many groups that come at about the same time are scored together."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from raytune.config.model import ModelConfig
from raytune.errors import ConfigError, RewardError
from raytune.rewards.attempt import Attempt, describe
from raytune.rewards.base import Completion, RewardUnavailable

WINDOW = 0.02
"""Seconds that the first rows of a batch wait for more; a pass over the model takes longer."""
MAX_ROWS = 64
LOAD_DEADLINE = 1800.0
_MAX_WAITING = 10_000


class Scorer(Protocol):
    """A reward model in this process."""

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Score prompt and answer of each row, as token ids."""
        ...


@dataclass(slots=True)
class _Waiting:
    rows: Sequence[Sequence[int]]
    scores: asyncio.Future[list[float]]


class RewardModelWorker:
    """Holds a reward model.

    Args: make: loads it; called in this process, once after each start.
    """

    def __init__(self, make: Callable[[], Scorer], *, window: float = WINDOW, max_rows: int = MAX_ROWS) -> None:
        self._scorer = make()
        self._window, self._max_rows = window, max_rows
        self._waiting: list[_Waiting] = []
        self._turn: asyncio.Task[None] | None = None
        self._num_batches = 0

    async def ready(self) -> bool:
        """Answers when the model is loaded."""
        return True

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
                scores = await asyncio.to_thread(self._scorer.score, rows)
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
    """A reward function that asks a RewardModelWorker. Args: seconds: deadline of a batch.

    A model that does not answer in time is started anew, so that the group's next attempt finds it working.
    """

    def __init__(self, worker: Any, *, seconds: float) -> None:
        self._worker = worker
        self._seconds = seconds
        self.trouble: str | None = None
        """Why the last call failed, if it did."""

    async def __call__(self, completions: Sequence[Completion], token_rows: Sequence[Sequence[int]]) -> list[float]:
        """Raises RewardUnavailable if the model died, hangs, or cannot score."""
        self.trouble = None
        try:
            return await asyncio.wait_for(self._worker.score.remote(token_rows), self._seconds)
        except RayTaskError as error:
            self.trouble = str(error.cause)
        except RayActorError:
            self.trouble = "the reward model's process died"
        except TimeoutError:
            ray.kill(self._worker, no_restart=False)
            self.trouble = f"the reward model gave no scores within {self._seconds:g} s"
        raise RewardUnavailable(self.trouble)


def start_reward_model(make: Callable[[], Scorer], place: dict[str, Any]) -> Any:
    """Start the actor in a bundle of its own and begin to load. Args: place: Ray's options (num_gpus, ...)."""
    actor = ray.remote(RewardModelWorker).options(
        max_restarts=-1, max_task_retries=2, max_concurrency=_MAX_WAITING, **place
    )
    return actor.remote(make)


def await_reward_model(worker: Any) -> None:
    """Wait until the model is loaded. Errors: what loading it raised."""
    try:
        ray.get(worker.ready.remote(), timeout=LOAD_DEADLINE)
    except ray.exceptions.GetTimeoutError:
        raise RewardError(f"the reward model did not load within {LOAD_DEADLINE:g} s") from None
    except RayActorError as error:
        raise RewardError(f"the reward model does not load: {str(error).strip().splitlines()[-1]}") from None


def check_same_vocabulary(policy: ModelConfig, reward: ModelConfig) -> None:
    """Token ids of the policy must mean the same to its reward model. Raises: ConfigError."""
    from raytune.models.tokenizer import load_tokenizer

    ours, theirs = load_tokenizer(policy).get_vocab(), load_tokenizer(reward).get_vocab()
    if ours == theirs:
        return
    differ = next(token for token in [*ours, *theirs] if ours.get(token) != theirs.get(token))
    raise ConfigError(
        f"the reward model has another tokenizer: token {differ!r} is {ours.get(differ)} to the policy and "
        f"{theirs.get(differ)} to it",
        where=f"reward_model: {reward.model_name_or_path}",
        fix="Use a reward model that was trained from a model with the policy's tokenizer.",
    )
