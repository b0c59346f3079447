import logging
from dataclasses import replace

import pytest

from raytune.rewards.table import RewardTable
from raytune.stages.failures import MOST_KINDS, Failures, nothing_scored
from raytune.stages.samples import ScoredGroup


def group(number: int, **errors: str) -> ScoredGroup:
    table = RewardTable(tuple(errors), (1.0,) * len(errors), ((1.0,),) * len(errors), errors=errors)
    return ScoredGroup(number, number + 1, table, (1.0,), (1,), 1, (0,), ("stop",), None, 0.0, 0.0)


def test_each_failure_of_a_function_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    with caplog.at_level(logging.WARNING, "raytune"):
        for number, errors in enumerate([{"f": "boom"}, {"f": "boom", "g": "boom"}, {"f": "other"}, {}]):
            failures.tell(group(number, **errors))
    assert [message.removeprefix("the reward function ") for message in caplog.messages] == [
        "'f' failed (prompt 0, row 1): boom",
        "'g' failed (prompt 1, row 2): boom",
        "'f' failed (prompt 2, row 3): other",
    ]


def test_a_group_that_was_scored_again_is_told(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    with caplog.at_level(logging.WARNING, "raytune"):
        for number in (3, 4):
            failures.tell(replace(group(number), trouble="the reward worker died"))
    assert caplog.messages == [f"prompt {number} was scored again: the reward worker died" for number in (3, 4)]


def test_failures_that_are_all_different_are_told_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    with caplog.at_level(logging.WARNING, "raytune"):
        for number in range(20):
            failures.tell(group(number, f=f"boom {number}"))
    assert len(caplog.messages) == MOST_KINDS
    assert caplog.messages[-1].endswith("; its further failures are only counted (failed_f)")


def test_a_step_that_no_function_scored_names_what_is_known() -> None:
    said = str(nothing_scored(3, [group(0, f="boom", g="bang"), group(1, f="later", g="bang")]))
    assert "update 3" in said
    assert "(f: boom; g: bang)" in said
    empty = RewardTable(("f",), (1.0,), ((None,),))
    silent = ScoredGroup(0, 0, empty, empty.combined, (1,), 1, (0,), ("stop",), None, 0.0, 0.0)
    assert "(no reward function gave a score)" in str(nothing_scored(3, [silent]))
