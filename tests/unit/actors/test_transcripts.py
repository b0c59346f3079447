import math
from typing import Any

from actors.transcripts import spread, transcribe, turns_of
from raytune.rewards.base import RewardFunction
from raytune.stages.samples import Group, ScoredGroup
from raytune.stages.scoring import score_group
from tests.helpers.groups import completion, text_group
from tests.helpers.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def long(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
    log_extra("upper", [text.upper() for text in completions])
    return [len(text) or math.nan for text in completions]


def scored_of(answers: list[str], number: int = 0) -> tuple[ScoredGroup, Group]:
    lengths = RewardFunction("long", long)
    group = text_group(TOKENIZER, answers, number=number)
    return score_group([lengths], group, TOKENIZER), group


def test_the_best_and_the_worst_answer_are_shown() -> None:
    scored, group = scored_of(["four", "threethree", "", "x"], number=9)
    best, worst = transcribe(scored, group, TOKENIZER)
    assert (best.answer, best.reward, best.parts) == ("threethree<|im_end|>", 10.0, {"long": 10.0})
    assert (worst.answer, worst.reward, worst.parts) == ("<|im_end|>", None, {"long": None})
    assert (best.extra, worst.extra) == ({"upper": "THREETHREE"}, {"upper": ""})
    assert best.prompt == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert (best.number, best.row, best.finish, best.length, best.versions) == (9, 9, "stop", 11, ((0, 0, 11),))


def test_a_single_answer_is_shown_once() -> None:
    scored, group = scored_of(["one"])
    assert len(transcribe(scored, group, TOKENIZER)) == 1
    assert not math.isnan(scored.rewards[0])


def test_groups_are_taken_evenly() -> None:
    groups = [scored_of(["a"], number=number)[0] for number in range(8)]
    assert [group.number for group in spread(groups, 4)] == [0, 2, 4, 6]
    assert len(spread(groups, 20)) == 8


def test_what_an_environment_wrote_is_told_apart() -> None:
    ids = TOKENIZER("<calc>1+1</calc>2so 2", add_special_tokens=False)["input_ids"]
    mask = [place != len("<calc>1+1</calc>") for place in range(len(ids))]
    turns = turns_of(completion(ids, mask=mask), TOKENIZER)
    assert turns == (("policy", "<calc>1+1</calc>"), ("environment", "2"), ("policy", "so 2"))
