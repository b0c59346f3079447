"""What reward functions are shown of a group, and what the driver is told of it."""

import math
from dataclasses import replace
from typing import Any

from raytune.rewards.base import RewardFunction
from raytune.stages.group_numbers import describe
from raytune.stages.samples import Group, Sampling
from raytune.stages.scoring import score_group, told
from tests.helpers.groups import completion, text_group
from tests.helpers.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_an_alpaca_rows_answers_are_texts() -> None:
    group = text_group(TOKENIZER, ["yes", "no"], columns={"prompt": "q", "solution": 7})
    completions, columns = told(group, TOKENIZER)
    assert completions == ["yes", "no"]
    assert columns["prompts"] == ["q", "q"]
    assert columns["solution"] == [7, 7]
    assert columns["texts"] == [f"{PROMPT}yes<|im_end|>", f"{PROMPT}no<|im_end|>"]
    assert columns["completion_ids"] == [one.ids.tolist() for one in group.completions]
    assert columns["token_rows"] == [group.prompt.ids.tolist() + one.ids.tolist() for one in group.completions]


def test_a_conversations_answers_are_messages() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    completions, columns = told(text_group(TOKENIZER, ["yes"], columns={"messages": messages}), TOKENIZER)
    assert completions == [[{"role": "assistant", "content": "yes"}]]
    assert columns["prompts"] == columns["messages"] == [messages]


def test_what_an_environment_said_is_a_tools() -> None:
    drawn, said, last = (TOKENIZER(text)["input_ids"] for text in ("2+2", "=4", "four<|im_end|>"))
    mask = [True] * len(drawn) + [False] * len(said) + [True] * len(last)
    prompt = text_group(TOKENIZER, [], columns={"messages": []}).prompt
    group = Group(prompt, (completion([*drawn, *said, *last], mask=mask),), Sampling(), 0.0)
    completions, _ = told(group, TOKENIZER)
    contents = [("assistant", "2+2"), ("tool", "=4"), ("assistant", "four")]
    assert completions == [[{"role": role, "content": text} for role, text in contents]]


def test_a_prompt_without_columns_is_shown_as_it_reads() -> None:
    _, columns = told(text_group(TOKENIZER, ["yes"], columns={}), TOKENIZER)
    assert columns["prompts"] == ["user\nq\nassistant\n"]


def test_the_driver_is_told_everything_but_the_tokens() -> None:
    def halves(completions: list[str], solution: list[int], **_: Any) -> list[float | None]:
        return [len(text) / right if text else None for text, right in zip(completions, solution, strict=True)]

    group = text_group(TOKENIZER, ["four", ""], number=3, columns={"prompt": "q", "solution": 2})
    scored = score_group([RewardFunction("halves", halves, weight=0.5)], group, TOKENIZER)
    assert (scored.number, scored.row, scored.payload, scored.prompt_length) == (3, 3, None, 20)
    assert scored.rewards[0] == 1.0
    assert math.isnan(scored.rewards[1])
    assert scored.lengths == (5, 1)
    assert scored.table.scores == ((2.0, None),)
    assert scored.rollout_seconds == 0.5


def lengths(completions: list[str], log_extra: Any, **_: Any) -> list[float | None]:
    """One point a letter; it cannot say of nothing."""
    log_extra("letters", list(completions))
    return [float(len(text)) if text else None for text in completions]


def test_the_greedy_answer_is_scored_with_the_others_and_told_apart() -> None:
    seen: list[list[str]] = []

    def watched(completions: list[str], **_: Any) -> list[float]:
        seen.append(completions)
        return [1.0 for _ in completions]

    rewards = [RewardFunction("lengths", lengths, weight=0.5), RewardFunction("watched", watched, weight=2.0)]
    scored = score_group(rewards, text_group(TOKENIZER, ["four", "ab"], greedy="greedy"), TOKENIZER)
    assert seen == [["four", "ab", "greedy"]]
    assert scored.baseline == 0.5 * 6 + 2.0
    assert scored.rewards == (0.5 * 4 + 2.0, 0.5 * 2 + 2.0)
    assert scored.table.scores == ((4.0, 2.0), (1.0, 1.0))
    assert scored.table.combined == scored.rewards
    assert scored.table.extra == {"letters": ["four", "ab"]}
    assert (scored.lengths, scored.finishes, scored.oldest) == ((5, 3), ("stop", "stop"), (0, 0))


def test_without_a_score_of_the_greedy_answer_none_has_one() -> None:
    group = text_group(TOKENIZER, ["four", "ab"], greedy="")
    scored = score_group([RewardFunction("lengths", lengths)], group, TOKENIZER)
    assert scored.baseline is not None
    assert list(map(math.isnan, (scored.baseline, *scored.rewards))) == [True] * 3
    # What the function said stays to be seen.
    assert scored.table.scores == ((4.0, 2.0),)


def test_an_answer_that_its_environment_failed_has_no_reward() -> None:
    group = text_group(TOKENIZER, ["four", "ab"])
    broken = replace(group.completions[1], finish="failed", failure="its step raised KeyError: 'boom'")
    scored = score_group(
        [RewardFunction("lengths", lengths)], replace(group, completions=(group.completions[0], broken)), TOKENIZER
    )
    assert scored.rewards[0] == 4.0
    assert math.isnan(scored.rewards[1])
    assert scored.table.errors == {"environment": "its step raised KeyError: 'boom'"}
    assert describe([scored], version=0)["failed_environment"] == 1.0


def test_no_answer_is_younger_than_what_it_is_compared_with() -> None:
    old, new, greedy = (completion([7, 8], version=version) for version in (2, 5, 3))
    group = replace(text_group(TOKENIZER, []), completions=(old, new), baseline=greedy)
    scored = score_group([RewardFunction("lengths", lengths)], group, TOKENIZER)
    assert scored.oldest == (2, 3)
