import math
import time
from decimal import Decimal

import pytest
from trl.rewards import think_format_reward

from raytune.errors import ConfigError
from raytune.rewards.base import Unscored
from raytune.rewards.format import AnswerReward, PatternReward, last_number, same_number, same_text, think_format


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4 + 3 = 7", "7"),
        ("It is 7.", "7"),
        ("It is 7.0, I think", "7"),
        ("1,234.50 dollars", "1234.5"),
        ("12,345,678", "12345678"),
        ("from 10 to -3", "-3"),
        ("5-3", "3"),
        ("x=-7", "-7"),
        ("#### 72", "72"),
        (r"\boxed{0.25}", "0.25"),
        (".5", "0.5"),
        ("6e23 atoms", "6e23"),
        ("50%", "50"),
        ("**12**", "12"),
    ],
)
def test_the_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "seven", "H2O", "-", "..."])
def test_no_number(text: str) -> None:
    assert last_number(text) is None


def test_long_texts_are_searched_in_no_time() -> None:
    begun = time.monotonic()
    for text in ("1" * 200_000, "1," * 100_000, "-" * 200_000, "1." * 100_000):
        last_number(text)
    assert time.monotonic() - begun < 5


def test_numbers_are_compared_exactly() -> None:
    assert same_number("0.30000000000000000001", "0.3") is False
    assert same_number("0.30", "0.3") is True
    assert same_number("none", "3") is False
    assert same_number("3", "three") is None
    assert same_number("1e99999999999999999999", "7") is False
    assert same_number("7", "1e99999999999999999999") is None


def test_exact_answers() -> None:
    reward = AnswerReward(same_text, column="solution")
    answers = [" Paris\n", "paris", [{"role": "assistant", "content": "Paris"}]]
    assert reward(answers, solution=["Paris"] * 3, prompts=[""] * 3) == [1.0, 0.0, 1.0]


def test_a_row_without_a_right_answer_is_not_scored() -> None:
    reward = AnswerReward(same_number, column="answer")
    right, missing, words = reward(["7", "7", "7"], answer=[7, None, "seven"])
    assert right == 1.0
    assert missing is None
    assert isinstance(words, Unscored)
    assert "seven" in words.why


def test_a_pattern_is_found_anywhere_unless_it_is_anchored() -> None:
    answers = ["<answer>7</answer>", "so <answer>7\n</answer>", "7"]
    assert PatternReward("<answer>.*</answer>")(answers) == [1.0, 1.0, 0.0]
    assert PatternReward("^<answer>.*</answer>$")(answers) == [1.0, 0.0, 0.0]


def test_a_pattern_that_never_ends_scores_nothing() -> None:
    begun = time.monotonic()
    (score,) = PatternReward("^(a|aa)+$")(["a" * 200 + "b"])
    assert score is not None
    assert math.isnan(score)
    assert time.monotonic() - begun < 10


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="reward_regex is no regular expression"):
        PatternReward("(")


def test_think_tags_as_trl_sees_them() -> None:
    texts = [
        "<think>\nwell\n</think>\n7",
        "<think>well</think>",
        "<think></think>7",
        "<think>well\n7",
        "well</think>7",
        "7",
        "",
        " <think>well</think>7",
        "<think>a<think>b</think>7",
        "<think>a</think>7<think>b</think>",
        "<think>a</think></think>7",
    ]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    assert think_format(answers) == think_format_reward(answers)
    assert think_format(answers)[:4] == [1.0, 1.0, 1.0, 0.0]
