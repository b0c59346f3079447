"""What passes between the roles of reinforcement learning: prompts, answers, scores. Token ids, never text."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raytune.rewards.table import RewardTable

Ids = npt.NDArray[np.int32]
Finish = Literal["stop", "length", "environment", "failed"]
"""What ended an answer: a stop word, its limit, the environment's word, or a failure of the environment."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn; kept with each sample, because it is part of the behaviour policy.

    Args: top_p: 1 and top_k: 0 cut nothing off. stop_ids: tokens that end an answer and belong to it.
    seed: every answer's own seed is derived from it, the prompt's number and the answer's place in its group.
    greedy_baseline: draw the likeliest answer besides, with which the others are compared.

    Example: Sampling(temperature=1.0, max_new_tokens=64, stop_ids=(2,), seed=42)
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int = 42
    greedy_baseline: bool = False

    @property
    def likeliest(self) -> "Sampling":
        """The same with the likeliest token each time."""
        return replace(self, temperature=0.0, top_p=1.0, top_k=0, greedy_baseline=False)

    def num_drawn(self, group_size: int) -> int:
        """Answers that are drawn to one prompt for a group of this size."""
        return group_size + self.greedy_baseline


# Made by the prompt source on the driver, read by rollout and reward actors.
@dataclass(frozen=True, slots=True)
class Prompt:
    """The `number`-th prompt that a run draws (from 0, never twice), from row `row` of its prompt set.

    columns: what the row has beside the prompt, for rewards; `messages` among it, if the row is a conversation.

    Example: Prompt(0, 17, np.array([1, 520, 2]), {"messages": [...], "solution": "7"})
    """

    number: int
    row: int
    ids: Ids
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens start ... end - 1 of an answer were drawn from weights `version`. Example: VersionSpan(4, 0, 27)"""

    version: int
    start: int
    end: int


# Made by a rollout actor, read by reward actors and trainer ranks.
@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of T tokens.

    logprobs: [T] float32, of the behaviour policy: after temperature and truncation; 0 where mask is False.
    mask: [T], False on tokens that an environment put in (tool results, user turns); those are not trained on.
    failure: why the environment failed, where that ended it; such an answer has no reward.

    Example: Completion(ids, logprobs, mask, (VersionSpan(4, 0, 31),), "stop")
    """

    ids: Ids
    logprobs: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    versions: tuple[VersionSpan, ...]
    finish: Finish
    failure: str = ""

    @property
    def oldest(self) -> int:
        """The oldest weights that any of its tokens was drawn from."""
        return min(span.version for span in self.versions)


# Made by a rollout actor, read by reward actors and trainer ranks.
@dataclass(frozen=True, slots=True)
class Group:
    """The answers to one prompt. baseline: the greedy one, never learned from; only if the sampling asks for it.

    Example: Group(prompt, (first, second), Sampling(seed=42), seconds=2.1)
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    sampling: Sampling
    seconds: float
    baseline: Completion | None = None

    @property
    def drawn(self) -> tuple[Completion, ...]:
        """All answers, the greedy one last."""
        return self.completions if self.baseline is None else (*self.completions, self.baseline)


# Made by a reward actor from a Group, read by the driver; the tokens stay in the object store behind `payload`.
@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """What the driver knows of a finished group of G answers.

    rewards: [G], NaN where unscorable. lengths: [G] tokens of the answers. oldest: [G] weight versions.
    payload: opaque to the algorithm; trainer ranks get their Group by it. baseline: reward of the greedy answer, if
    one was drawn. It is counted nowhere else, but no answer is younger than what it is compared with, and where it is
    NaN so are all rewards. trouble: why it was scored anew, if it was.

    Example: ScoredGroup(0, 17, table, (1.0, 0.0), (9, 14), 31, (3, 3), ("stop", "stop"), ref, 2.1, 0.1)
    """

    number: int
    row: int
    table: RewardTable
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    prompt_length: int
    oldest: tuple[int, ...]
    finishes: tuple[Finish, ...]
    payload: Any
    rollout_seconds: float
    reward_seconds: float
    baseline: float | None = None
    trouble: str | None = None
