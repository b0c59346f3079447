"""A group of answers as reward functions want to see it: texts or messages, and columns; and what they made of it."""

import time
from collections.abc import Sequence
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
    """What the driver is told of a group; who has the group's tokens puts the payload there."""
    return ScoredGroup(
        number=group.prompt.number,
        row=group.prompt.row,
        table=table,
        rewards=table.combined,
        lengths=tuple(len(one.ids) for one in group.completions),
        prompt_length=len(group.prompt.ids),
        oldest=tuple(one.oldest for one in group.completions),
        finishes=tuple(one.finish for one in group.completions),
        payload=None,
        rollout_seconds=group.seconds,
        reward_seconds=seconds,
    )


def told(group: Group, tokenizer: Decodes) -> tuple[list[Any], dict[str, list[object]]]:
    """The answers, and the columns beside them, a value an answer.

    Where the row is a conversation (it has `messages`), prompts and answers are lists of messages, as TRL gives them
    for conversational data; else they are texts. Special tokens are left out of both, but not of `texts`, which are
    prompt and answer as the policy's tokens read, as `token_rows` are their ids.
    """
    prompt, answers = group.prompt, group.completions
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
