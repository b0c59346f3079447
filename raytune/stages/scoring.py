"""A group of answers as reward functions want to see it: texts or messages, and columns; and what they made of it."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from raytune.data.decoder import Decodes
from raytune.rewards.base import RewardFunction
from raytune.rewards.score import score
from raytune.rewards.table import RewardTable
from raytune.stages.samples import Completion, Group, ScoredGroup

GIVEN = ("prompts", "completions", "completion_ids", "token_rows", "texts")
"""What every function can have beside the row's own columns and what it logs with."""
ENVIRONMENT = "environment"
"""Who failed, where it was no reward function."""


def score_group(
    rewards: Sequence[RewardFunction],
    group: Group,
    tokenizer: Decodes,
    *,
    time_limit: float | None = None,
) -> ScoredGroup:
    """Score a group; see raytune.rewards.score for what happens to answers that cannot be scored."""
    begun = time.monotonic()
    completions, columns = told(group, tokenizer)
    table = score(rewards, completions, columns, time_limit=time_limit)
    return scored(group, table, seconds=time.monotonic() - begun)


def scored(group: Group, table: RewardTable, *, seconds: float) -> ScoredGroup:
    """What the driver is told of a group; who has the group's tokens puts the payload there.

    An answer that its environment failed has no reward, whatever functions gave to what there is of it.

    Args: table: of group.drawn, so with the greedy answer last where there is one.
    """
    failures = [one.failure for one in group.drawn if one.failure]
    if failures:
        table = replace(table, errors={**table.errors, ENVIRONMENT: failures[0]})
    combined = [math.nan if one.failure else reward for one, reward in zip(group.drawn, table.combined, strict=True)]
    answers, rewards = group.completions, tuple(combined[: len(group.completions)])
    baseline = None if group.baseline is None else combined[-1]
    if baseline is not None and math.isnan(baseline):
        # There is nothing to compare the others with.
        rewards = (math.nan,) * len(answers)
    return ScoredGroup(
        number=group.prompt.number,
        row=group.prompt.row,
        table=table.first(len(answers)),
        rewards=rewards,
        lengths=tuple(len(one.ids) for one in answers),
        prompt_length=len(group.prompt.ids),
        oldest=_oldest(group),
        finishes=tuple(one.finish for one in answers),
        payload=None,
        rollout_seconds=group.seconds,
        reward_seconds=seconds,
        baseline=baseline,
    )


def _oldest(group: Group) -> tuple[int, ...]:
    """Versions that the answers depend on: what an answer is compared with was drawn from one too."""
    own = tuple(one.oldest for one in group.completions)
    return own if group.baseline is None else tuple(min(version, group.baseline.oldest) for version in own)


def told(group: Group, tokenizer: Decodes) -> tuple[list[Any], dict[str, list[object]]]:
    """The answers of group.drawn, and the columns beside them, a value an answer.

    Where the row is a conversation (it has `messages`), prompts and answers are lists of messages, as TRL gives them
    for conversational data; else they are texts. Special tokens are left out of both, but not of `texts`, which are
    prompt and answer as the policy's tokens read, as `token_rows` are their ids.
    """
    prompt, answers = group.prompt, group.drawn
    chats = "messages" in prompt.columns
    asked = prompt.columns["messages"] if chats else prompt.columns.get("prompt")
    if asked is None:
        asked = _text(prompt.ids, tokenizer)
    columns = {name: [value] * len(answers) for name, value in prompt.columns.items()}
    columns["prompts"] = [asked] * len(answers)
    columns["completion_ids"] = [one.ids.tolist() for one in answers]
    columns["token_rows"] = [[*prompt.ids.tolist(), *one.ids.tolist()] for one in answers]
    columns["texts"] = [_text(np.concatenate([prompt.ids, one.ids]), tokenizer, special=True) for one in answers]
    return [_turns(one, tokenizer) if chats else _text(one.ids, tokenizer) for one in answers], columns


def _turns(answer: Completion, tokenizer: Decodes) -> list[dict[str, str]]:
    """An answer as messages: what the policy drew is the assistant's, what an environment put in is a tool's."""
    turns = []
    for drawn, places in groupby(range(len(answer.ids)), key=lambda place: bool(answer.mask[place])):
        ids = answer.ids[list(places)]
        turns.append({"role": "assistant" if drawn else "tool", "content": _text(ids, tokenizer)})
    return turns


def _text(ids: Any, tokenizer: Decodes, *, special: bool = False) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=not special))
