import asyncio
import math
import threading
import time
from collections.abc import Callable
from enum import Enum, IntEnum, StrEnum
from typing import Any

import numpy as np
import pytest
import torch

from raytune.rewards.base import RewardFunction, RewardUnavailable, Unscored
from raytune.rewards.score import score

ANSWERS = ["7", "8", "boom", "9"]
COLUMNS = {"prompts": ["3+4", "3+5", "?", "4+5"], "completion_ids": [[1], [2], [3, 3], [4]], "level": [1, 2, 3, 4]}


def reward(call: Callable[..., Any], name: str = "f", **changes: Any) -> RewardFunction:
    return RewardFunction(name, call, **changes)


def numbers(completions: list[str], **columns: object) -> list[float]:
    return [float(answer) for answer in completions]


def test_a_function_gets_answers_and_columns_by_name() -> None:
    seen: dict[str, Any] = {}

    def spy(**given: Any) -> list[float]:
        seen.update(given)
        return [1.0] * 4

    score([reward(spy)], ANSWERS, COLUMNS)
    assert seen.pop("log_metric")
    assert seen.pop("log_extra")
    assert seen == {"completions": ANSWERS, **COLUMNS}


def test_a_function_that_names_its_columns_gets_no_others() -> None:
    def level(completions: list[str], level: list[int]) -> list[int]:
        return level

    table = score([reward(level, accepts=frozenset({"completions", "level"}))], ANSWERS, COLUMNS)
    assert table.scores == ((1.0, 2.0, 3.0, 4.0),)


def test_one_bad_sample_does_not_spoil_the_rest() -> None:
    table = score(
        [reward(numbers, "number"), reward(lambda **given: [0.5] * len(given["completions"]), "half")], ANSWERS, COLUMNS
    )
    # In one process a failure is math.nan itself, which tuples take for equal.
    assert table.scores == ((7.0, 8.0, math.nan, 9.0), (0.5, 0.5, 0.5, 0.5))
    assert (table.combined[:2], table.combined[3]) == ((7.5, 8.5), 9.5)
    assert math.isnan(table.combined[2])
    assert table.failures == {"number": 1, "half": 0}
    assert table.errors == {"number": "ValueError: could not convert string to float: 'boom'"}
    assert set(table.seconds) == {"number", "half"}


def test_each_sample_is_tried_once_more_with_its_own_columns() -> None:
    calls: list[tuple[int, list[int]]] = []

    def picky(completions: list[str], level: list[int], **columns: object) -> list[float]:
        calls.append((len(completions), level))
        if "boom" in completions:
            raise KeyError("boom")
        return [float(one) for one in level]

    table = score([reward(picky)], ANSWERS, COLUMNS)
    assert table.scores == ((1.0, 2.0, math.nan, 4.0),)
    assert calls == [(4, [1, 2, 3, 4]), (1, [1]), (1, [2]), (1, [3]), (1, [4])]


def test_what_cannot_be_reached_is_not_asked_sample_by_sample() -> None:
    calls: list[int] = []

    def down(completions: list[str], **columns: object) -> list[float]:
        calls.append(len(completions))
        raise RewardUnavailable("the server is down", where="http://host")

    table = score([reward(down)], ANSWERS, COLUMNS)
    assert calls == [4]
    assert table.scores == ((math.nan,) * 4,)
    assert table.errors == {"f": "RewardUnavailable: the server is down (http://host)."}
    assert all(map(math.isnan, table.combined))


@pytest.mark.parametrize(
    "raised", [SystemExit(0), AssertionError(), RecursionError("deep"), type("Own", (Exception,), {})("x")]
)
def test_anything_may_be_raised(raised: BaseException) -> None:
    def fail(**given: Any) -> list[float]:
        raise raised

    table = score([reward(fail)], ["a"], {})
    assert table.scores == ((math.nan,),)
    assert table.errors["f"].startswith(type(raised).__name__)


def test_the_user_can_still_interrupt() -> None:
    def interrupted(**given: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score([reward(interrupted)], ["a"], {})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([1.0, 2.0, 3.0], "it gave 3 scores for 4 answers"),
        ([], "it gave 0 scores for 4 answers"),
        (None, "it gave NoneType, not a list of scores"),
        (1.0, "it gave float, not a list of scores"),
        ("1111", "it gave str, not a list of scores"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "it gave dict, not a list of scores"),
    ],
)
def test_another_number_of_scores_scores_nothing(given: object, why: str) -> None:
    table = score([reward(lambda **_: given)], ANSWERS, COLUMNS)
    assert table.scores == ((math.nan,) * 4,)
    assert table.errors == {"f": why}


def test_nan_and_infinity_are_failures_and_none_is_not() -> None:
    table = score([reward(lambda **_: [1, None, math.nan, -math.inf])], ANSWERS, COLUMNS)
    assert table.scores == ((1.0, None, math.nan, math.nan),)
    assert table.failures == {"f": 2}
    assert table.errors == {"f": "it gave nan"}
    assert score([reward(lambda **_: [1, None])], ["a", "b"], {}).errors == {}


def test_a_reason_is_shown() -> None:
    table = score([reward(lambda **_: [1.0, Unscored("the row has no tests")])], ["a", "b"], {})
    assert table.errors == {"f": "the row has no tests"}


@pytest.mark.parametrize("given", [torch.tensor([1.0, 0.0]), np.array([1, 0]), (True, False), iter([1.0, 0.0])])
def test_numbers_of_any_library_are_scores(given: object) -> None:
    assert score([reward(lambda **_: given)], ["a", "b"], {}).scores == ((1.0, 0.0),)


def test_functions_that_are_not_async_run_on_the_callers_thread() -> None:
    threads: list[threading.Thread] = []
    score([reward(lambda **_: [threads.append(threading.current_thread()) or 1.0])], ["a"], {})
    assert threads == [threading.current_thread()]


def test_async_functions_run_together() -> None:
    async def slow(completions: list[str], **columns: object) -> list[float]:
        await asyncio.sleep(0.3)
        return [1.0] * len(completions)

    begun = time.monotonic()
    table = score([reward(slow, name, awaits=True) for name in "abcd"], ANSWERS, COLUMNS)
    assert time.monotonic() - begun < 0.9
    assert table.names == ("a", "b", "c", "d")
    assert table.combined == (4.0,) * 4


def test_async_functions_keep_their_order_and_their_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def own(completions: list[str], **columns: object) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [2.0]

    functions = [reward(own, "later", awaits=True), reward(lambda **_: [1.0], "now")]
    first, second = (score(functions, ["a"], {}) for _ in range(2))
    assert first.names == second.names == ("later", "now")
    assert first.scores == ((2.0,), (1.0,))
    assert loops[0] is loops[1]


def test_scoring_works_inside_a_running_loop() -> None:
    async def one(completions: list[str], **columns: object) -> list[float]:
        return [1.0]

    async def caller() -> tuple[float, ...]:
        return score([reward(one, awaits=True)], ["a"], {}).combined

    assert asyncio.run(caller()) == (1.0,)


def test_an_async_function_that_hangs_on_one_sample_is_stopped() -> None:
    async def hangs(completions: list[str], **columns: object) -> list[float]:
        if "boom" in completions:
            await asyncio.sleep(60)
        return [1.0] * len(completions)

    begun = time.monotonic()
    table = score([reward(hangs, awaits=True)], ANSWERS, COLUMNS, time_limit=0.2)
    assert time.monotonic() - begun < 5
    assert table.scores == ((1.0, 1.0, math.nan, 1.0),)
    assert table.errors == {"f": "TimeoutError: it took longer than 0.2 s"}


def test_what_trls_functions_report_is_kept() -> None:
    def reports(completions: list[str], log_metric: Any, log_extra: Any, **columns: object) -> list[float]:
        log_metric("mean_length", 2)
        log_metric("mean_length", 4)
        log_extra("parsed", [answer.upper() for answer in completions])
        log_extra("measured", [math.nan, {1}])
        log_extra("too_short", [1])
        return [0.0] * len(completions)

    table = score([reward(reports)], ["a", "b"], {})
    assert table.metrics == {"mean_length": 3.0}
    assert table.extra == {"parsed": ["A", "B"], "measured": ["nan", "{1}"]}


class Verdict(StrEnum):
    RIGHT = "right"


class Mixed(str, Enum):  # noqa: UP042 - users write it, and its str is not its text
    RIGHT = "right"


class Level(IntEnum):
    HARD = 3


class Percent(float): ...


class Proud(str):
    def __str__(self) -> str:
        return self


class Answer:
    def __str__(self) -> str:
        return Proud("seven")


def test_what_is_reported_is_plain_whatever_class_the_user_gave_it() -> None:
    noted = [
        Verdict.RIGHT, Mixed.RIGHT, Level.HARD, Percent(0.5), Percent("nan"), Proud("p"), Answer(),
        np.float64(0.25), np.int64(3), np.str_("s"), None, True, 4, 0.5, "t",
    ]  # fmt: skip
    plain = ["right", "right", 3, 0.5, "nan", "p", "seven", 0.25, "3", "s", None, True, 4, 0.5, "t"]

    def reports(completions: list[str], log_metric: Any, log_extra: Any, **columns: object) -> list[float]:
        log_metric(Verdict.RIGHT, Percent(0.5))
        log_extra(Verdict.RIGHT, noted)
        return [Percent(0.5)] * len(completions)

    table = score([reward(reports)], ["a"] * len(noted), {})
    assert table.extra == {"right": plain}
    found = [*table.extra["right"], *table.extra, *table.metrics, *table.metrics.values(), *table.scores[0]]
    # A class of the user's file is pickled by its name, which other processes do not know.
    assert {type(value) for value in found} == {str, int, float, bool, type(None)}


def test_nothing_to_score() -> None:
    table = score([reward(numbers)], [], {"prompts": []})
    assert table.combined == ()
    assert math.isnan(table.means["f"])


def test_uneven_columns_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"4 answers.*'level': 3"):
        score([reward(numbers)], ANSWERS, {"level": [1, 2, 3]})
