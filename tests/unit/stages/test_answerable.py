from pathlib import Path

import numpy as np
import pytest

from raytune.errors import DataError
from raytune.stages.answerable import answerable
from raytune.stages.prompts import PromptSource


class Rows:
    """Prompt r is r ones long."""

    path = Path("rows")

    def __init__(self, *lengths: int) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index):
        return {"input_ids": np.ones(self.lengths[index], np.int32)}

    def columns(self, index):
        return {"number": index}


def test_prompts_that_fill_the_window_are_left_out_and_counted(caplog):
    rows = Rows(3, 8, 7, 12)
    with caplog.at_level("WARNING", logger="raytune"):
        kept = answerable(rows, window=8)
    assert [len(kept.row(place)["input_ids"]) for place in range(len(kept))] == [3, 7]
    assert [kept.columns(place)["number"] for place in range(len(kept))] == [0, 2]
    assert kept.lengths.tolist() == [3, 7]
    assert "2 of 4 prompts are left out: with 8 tokens or more" in caplog.text
    assert "(rows 1, 3)" in caplog.text


def test_a_source_draws_only_those():
    source = PromptSource(answerable(Rows(3, 8, 7, 12), window=8), seed=1, limit=4)
    assert sorted(len(prompt.ids) for prompt in source.draw(4)) == [3, 3, 7, 7]


def test_a_set_that_fits_is_taken_as_it_is():
    rows = Rows(3, 7)
    assert answerable(rows, window=8) is rows


def test_no_prompt_left_is_refused_with_the_shortest():
    with pytest.raises(DataError, match=r"the shortest has 9 tokens, the engines take 8 .*Raise vllm_maxlen"):
        answerable(Rows(12, 9), window=8)
