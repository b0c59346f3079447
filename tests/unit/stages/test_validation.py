"""Validation on held-out prompts, with rollouts that are written by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from raytune.errors import RolloutError
from raytune.rewards.table import RewardTable
from raytune.stages.group_numbers import describe, describe_validation
from raytune.stages.prompts import HELD_OUT
from raytune.stages.samples import Prompt, Sampling, ScoredGroup
from raytune.stages.validation import validate


def group(number: int, *rewards: float) -> ScoredGroup:
    size = len(rewards)
    scores = tuple(None if math.isnan(reward) else reward for reward in rewards)
    table = RewardTable(("right",), (1.0,), (scores,))
    versions, finishes = (0,) * size, ("stop",) * size
    return ScoredGroup(number, 0, table, rewards, tuple(range(1, size + 1)), 3, versions, finishes, None, 0.1, 0.1)


class Rollouts:
    """Hands out what it was given, a batch a call."""

    def __init__(self, *batches: list[ScoredGroup]) -> None:
        self.batches = list(batches)
        self.asked: list[tuple[list[int], int]] = []

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling, group_size: int) -> None:
        self.asked.append(([prompt.number for prompt in prompts], group_size))

    def wait(self, timeout: float) -> list[ScoredGroup]:
        if not self.batches:
            raise RolloutError(f"nothing within {timeout:g} s")
        return self.batches.pop(0)

    def pending(self) -> int:
        return len(self.batches)


def held(count: int) -> list[Prompt]:
    return [Prompt(HELD_OUT + place, place, np.array([1], np.int32)) for place in range(count)]


def test_groups_of_training_are_handed_back() -> None:
    train = group(4, 1.0, 1.0)
    rollouts = Rollouts([group(HELD_OUT + 1, 0.0, 0.0)], [train, group(HELD_OUT, 1.0, 0.0)])
    numbers, others = validate(rollouts, held(2), Sampling(), 2, timeout=5.0)
    assert rollouts.asked == [([HELD_OUT, HELD_OUT + 1], 2)]
    assert others == [train]
    assert numbers["eval_reward"] == 0.25
    assert numbers["eval_pass@1"] == 0.25
    assert numbers["eval_pass@2"] == 0.5


def test_answers_that_do_not_come() -> None:
    with pytest.raises(RolloutError, match="within"):
        validate(Rollouts([group(HELD_OUT, 1.0)]), held(2), Sampling(), 1, timeout=5.0)


def test_each_function_is_told_apart() -> None:
    tables = [
        RewardTable(("right", "short"), (1.0, 0.5), ((1.0, math.nan), (0.5, None)), metrics={"words": 2.0}),
        RewardTable(("right", "short"), (1.0, 0.5), ((0.0, 0.0), (0.5, 2.0)), metrics={"words": 5.0}),
    ]
    groups = [replace(group(HELD_OUT + at, 1.0, 0.0), table=table) for at, table in enumerate(tables)]
    told = {"reward_right": 1 / 3, "reward_short": 1.0, "failed_right": 1.0, "failed_short": 0.0, "metric_words": 3.5}
    held_out = describe_validation(groups)
    assert {name: held_out[f"eval_{name}"] for name in told} == pytest.approx(told)
    step = describe(groups, version=0)
    assert {name: step[name] for name in told} == pytest.approx(told)


def test_the_first_function_says_what_is_right() -> None:
    # Wrong with half a point for its form, right without it; and one that the first function says nothing of.
    table = RewardTable(("right", "form"), (1.0, 0.5), ((0.0, 1.0, None), (1.0, 0.0, 1.0)))
    numbers = describe_validation([replace(group(HELD_OUT, 0.5, 1.0, 0.5), table=table)])
    assert numbers["eval_pass@1"] == 0.5
    assert numbers["eval_pass@2"] == 1.0


def test_a_stump_whose_environment_failed_is_not_right() -> None:
    # Right by what there is of it, but without a reward: the two others decide, one of which is right.
    table = RewardTable(("right",), (1.0,), ((1.0, 1.0, 0.0),))
    stump = replace(group(HELD_OUT, math.nan, 1.0, 0.0), table=table, finishes=("failed", "stop", "length"))
    numbers = describe_validation([stump])
    assert numbers["eval_pass@1"] == 0.5
    assert numbers["eval_pass@2"] == 1.0
    assert math.isnan(numbers["eval_pass@3"])


def test_what_could_not_be_scored_is_counted_apart() -> None:
    numbers = describe_validation([group(HELD_OUT, 1.0, math.nan), group(HELD_OUT + 1, 0.0, 1.0)])
    assert numbers["eval_reward"] == pytest.approx(2 / 3)
    assert numbers["eval_unscorable"] == 1.0
    assert numbers["eval_pass@2"] == 1.0
    assert numbers["eval_completion_length"] == 1.5
    assert math.isnan(describe_validation([group(HELD_OUT, math.nan)])["eval_reward"])
