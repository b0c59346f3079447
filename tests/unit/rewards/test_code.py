import math
import os
import time
from pathlib import Path

import pytest

import raytune.rewards.code as rewards_code
import raytune.rewards.sandbox as sandbox
from raytune.rewards.base import RewardFunction, RewardUnavailable
from raytune.rewards.code import CodeReward, Shares, extract_code, split_tests
from raytune.rewards.sandbox import Limits
from raytune.rewards.score import score

ADD = "def add(a, b):\n    return a + b\n"
ASSERTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add('a', 'b') == 'ab'", "assert add(1, 1) == 3"]


def reward(seconds: float = 10) -> CodeReward:
    return CodeReward(column="tests", limits=Limits(seconds=seconds))


def test_the_share_of_tests_passed() -> None:
    answers = [f"Here you are:\n```python\n{ADD}```\n", ADD, "def add(a, b): return 0", "I cannot."]
    assert reward()(answers, tests=[ASSERTS] * 4) == [0.75, 0.75, 0.25, 0.0]


def test_a_single_text_is_one_test() -> None:
    check = "def check(f):\n    assert f(1, 2) == 3\n    assert f(0, 0) == 0\ncheck(add)\n"
    assert reward()([ADD, "def add(a, b): return 3"], tests=[check, check]) == [1.0, 0.0]


def test_scripts_are_tested_by_what_they_print() -> None:
    cases = [{"input": "1 2\n", "output": "3"}, {"input": "4 5\n", "output": "9\n"}]
    right = "print(sum(map(int, input().split())))"
    crashes = f"{right}\nraise SystemExit(1)"
    assert reward()([right, "print('3  ')", crashes], tests=[cases] * 3) == [1.0, 0.5, 0.0]


def test_the_main_block_of_a_tested_module_does_not_run() -> None:
    code = f"{ADD}\nif __name__ == '__main__':\n    print(add(*map(int, input().split())))\n"
    assert reward()([code, code], tests=[ASSERTS[0], {"input": "1 2", "output": "3"}]) == [1.0, 1.0]


def test_endless_answers_take_no_longer_than_the_limit_for_all_their_tests() -> None:
    begun = time.monotonic()
    cases = [{"input": "", "output": "1"}] * 20
    assert reward(seconds=1)(["while True: pass"], tests=[cases]) == [0.0]
    assert time.monotonic() - begun < 10


def test_answers_that_hang_are_wrong_and_keep_no_other_from_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    code = CodeReward(column="tests", limits=Limits(seconds=30), seconds=8)
    begun = time.monotonic()
    answers = [*["while True: pass"] * 7, ADD]
    assert code(answers, tests=["assert add(1, 2) == 3"] * 8) == [0.0] * 7 + [1.0]
    assert time.monotonic() - begun < 20


LATE = """
import os, runpy, time
if os.pread(0, 4, 0) == b"late":  # standard input is a file: what is read here is there to be read again
    time.sleep(60)
runpy.run_path({path!r}, run_name="__main__")
"""


def test_a_test_that_begins_too_late_is_not_passed_and_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "late.py"
    child.write_text(LATE.format(path=str(sandbox.CHILD)))
    monkeypatch.setattr(sandbox, "CHILD", child)
    cases = [{"input": "1", "output": "1"}, {"input": "late", "output": "late"}]
    assert reward(seconds=4)(["print(input())", "print(1)"], tests=[cases, cases[:1]]) == [0.5, 1.0]


def test_answers_that_others_left_no_time_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    cases = [{"input": "", "output": "1"}]
    code = CodeReward(column="tests", limits=Limits(seconds=10), seconds=0.0)
    # A text of statements and a script; the row without tests has no need of time.
    table = score([RewardFunction("code", code)], ["1", "print(1)", "1"], {"tests": ["assert True", cases, None]})
    assert list(map(repr, table.scores[0])) == ["nan", "nan", "None"]
    assert "other answers left it 0 s, in which it did not end: raise reward_time_limit" in table.errors["code"]


def test_a_limit_of_the_users_own_is_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_code, "FAIR", 60.0)
    code = CodeReward(column="tests", limits=Limits(seconds=5), seconds=60)
    assert code(["while True: pass"], tests=["assert True"]) == [0.0]


def test_a_limit_in_which_no_program_begins_is_said_when_it_is_made() -> None:
    with pytest.raises(RewardUnavailable, match=r"code_time_limit, 1e-06 s, is over before.*Raise code_time_limit"):
        CodeReward(column="tests", limits=Limits(seconds=1e-6))


def test_time_that_is_left_over_is_for_the_others() -> None:
    shares = Shares(4, 2, seconds=100.0, most=60.0)
    # Two rounds of 50 s; nobody took any time, so that the last two have 100 s between them and no more than 60 each.
    assert [shares.next() for _ in range(4)] == pytest.approx([50.0, 50.0, 60.0, 60.0], abs=1.0)
    assert Shares(9, 1, seconds=math.inf, most=5.0).next() == 5.0
    assert Shares(1, 1, seconds=0.0, most=5.0).next() == pytest.approx(0.0, abs=1e-9)


def test_a_row_without_tests_is_not_scored() -> None:
    for tests in ([], None, ""):
        assert reward()([ADD], tests=[tests]) == [None]


def test_tests_of_another_form_are_an_error() -> None:
    with pytest.raises(TypeError, match="input and an output"):
        split_tests([{"stdin": "1"}])
    with pytest.raises(TypeError, match="not 5"):
        split_tests(5)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\na\n```\nno:\n```py\nb\n```", "b\n"),
        ("```python\na\n```\nprints\n```text\n1\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```Python title=x\na\n```  ", "a\n"),
        ("x = '```'", "x = '```'"),
    ],
)
def test_the_last_block_of_python_is_the_code(answer: str, code: str) -> None:
    assert extract_code(answer) == code
