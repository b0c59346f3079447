import copy
import math
import pickle

import pytest

from raytune.rewards.base import Unscored, as_text


def test_a_text_is_its_own_text() -> None:
    assert as_text("4 + 3 = 7") == "4 + 3 = 7"


def test_a_conversation_counts_by_what_the_assistant_said_last() -> None:
    messages = [
        {"role": "assistant", "content": "calc(4+3)"},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "It is 7."},
        {"role": "user", "content": "Thanks"},
    ]
    assert as_text(messages) == "It is 7."


def test_a_message_without_a_role_is_the_answer() -> None:
    assert as_text([{"content": "7"}]) == "7"


def test_parts_of_a_content_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert as_text([{"role": "assistant", "content": parts}]) == "ab"


def test_a_bare_tool_call_says_nothing() -> None:
    assert as_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""


def test_numbers_of_a_column_are_written_out() -> None:
    assert as_text(7) == "7"


@pytest.mark.parametrize("wrong", [["a", "b"], [{"role": "assistant"}], [{"content": 5}]])
def test_lists_of_anything_else_are_refused(wrong: list[object]) -> None:
    with pytest.raises(TypeError):
        as_text(wrong)


def test_an_unscored_sample_is_nan_and_says_why_wherever_it_travels() -> None:
    score = Unscored("no solution")
    for one in (score, copy.copy(score), pickle.loads(pickle.dumps(score))):
        assert math.isnan(one)
        assert one.why == "no solution"
