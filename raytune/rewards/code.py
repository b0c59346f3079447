"""Reward for programs: the share of the tests that the answer's code passes, run in a sandbox."""

import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic

from raytune.log import get_logger
from raytune.rewards.base import Completion, RewardUnavailable, Score, Unscored, as_text
from raytune.rewards.sandbox import Limits, Outcome, run_program

log = get_logger(__name__)

FENCE = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
PYTHON = {"", "python", "python3", "py"}

FAIR = 1.0
"""Seconds, or code_time_limit if that is less, that an answer must have had before its hanging is its own fault."""


class CodeReward:
    """Runs the answer's Python code against its tests, on all CPUs that this process has.

    A test is a text of statements that raise if it fails (MBPP's and HumanEval's form; all of an answer run in one
    process) or a mapping {"input": ..., "output": ...} of what a script reads and prints (white space at the ends of
    lines aside; one process each). The reward is the share passed. Code that hangs, ends early or breaks a limit
    fails the tests that it has not passed by then; of a row without tests it says nothing.

    Args: column: where the tests of each row are: a list of tests, or one. limits: seconds are for all tests of an
    answer together. seconds: for a batch. Answers that would take longer one after the other on these CPUs have less
    time each, and what the first ones leave of theirs is for the others: those that hang are wrong, and no others.
    One that is killed after less than a second because the others took the time is not scored.
    Errors: RewardUnavailable if programs cannot be confined on this machine, or not in the time, already when made.
    """

    def __init__(self, *, column: str, limits: Limits, seconds: float = math.inf) -> None:
        self._column = column
        self._limits = limits
        self._seconds = seconds
        landlock = run_program("", limits, tests=()).landlock
        if landlock is None:
            raise RewardUnavailable(
                f"code_time_limit, {limits.seconds:g} s, is over before a program begins", fix="Raise code_time_limit."
            )
        if landlock == 0:
            log.warning("this kernel has no Landlock: programs that are scored can write wherever this user can")

    def __call__(self, completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
        pairs = zip(completions, columns[self._column], strict=True)
        cpus = len(os.sched_getaffinity(0))
        shares = Shares(len(completions), cpus, seconds=self._seconds, most=self._limits.seconds)
        with ThreadPoolExecutor(cpus) as pool:
            return list(pool.map(lambda pair: self._one(extract_code(as_text(pair[0])), pair[1], shares), pairs))

    def _one(self, code: str, tests: object, shares: "Shares") -> Score:
        asserts, cases = split_tests(tests)
        if not asserts and not cases:
            return None
        share = shares.next()
        passed, in_time = self._passed(code, asserts, cases, share)
        if not in_time and share < min(FAIR, self._limits.seconds):
            return Unscored(f"other answers left it {share:.2g} s, in which it did not end: raise reward_time_limit")
        return passed / (len(asserts) + len(cases))

    def _passed(self, code: str, asserts: list[str], cases: list[tuple[str, str]], seconds: float) -> tuple[int, bool]:
        """How many tests the code passes in so many seconds, and whether none was cut short by them."""
        deadline = monotonic() + seconds
        passed, in_time = 0, True
        if asserts:
            outcome = run_program(code, replace(self._limits, seconds=seconds), tests=asserts)
            passed, in_time = len(outcome.passed), outcome.status is not None
        for given, expected in cases:
            left = deadline - monotonic()
            if left <= 0:
                return passed, False
            outcome = run_program(code, replace(self._limits, seconds=left), stdin=given)
            passed += prints(outcome, expected)
            in_time &= outcome.status is not None
        return passed, in_time


class Shares:
    """Divides the time of a batch among programs that begin one after the other, `places` at a time.

    Args: seconds: of the batch, from now on. most: that a program may have.

    Example: Shares(4, 2, seconds=6.0, most=5.0).next() == 3.0  # about: two rounds are left, and 6 s
    """

    def __init__(self, programs: int, places: int, *, seconds: float, most: float) -> None:
        self._left, self._places, self._most = programs, places, most
        self._deadline = monotonic() + seconds
        self._lock = threading.Lock()

    def next(self) -> float:
        """Seconds of the program that begins now."""
        with self._lock:
            rounds = math.ceil(self._left / self._places)
            self._left -= 1
        return min(self._most, max(self._deadline - monotonic(), 0.0) / rounds)


def extract_code(answer: str) -> str:
    """The last fenced block of Python, or of no language; the whole answer if there is none."""
    blocks = [code for language, code in FENCE.findall(answer) if language.lower() in PYTHON]
    return blocks[-1] if blocks else answer


def split_tests(tests: object) -> tuple[list[str], list[tuple[str, str]]]:
    """Texts of statements, and (input, output) of scripts. Raises TypeError for anything else."""
    match tests:
        case None:
            return [], []
        case str() | Mapping():
            return split_tests([tests])
        case list() | tuple():
            asserts = [test for test in tests if isinstance(test, str) and test.strip()]
            cases = [_case(test) for test in tests if not isinstance(test, str)]
            return asserts, cases
        case _:
            raise TypeError(f"tests are a text, a mapping or a list of them, not {tests!r}")


def _case(test: object) -> tuple[str, str]:
    if not isinstance(test, Mapping) or not {"input", "output"} <= test.keys():
        raise TypeError(f"a test is a text or has an input and an output, not {test!r}")
    return str(test["input"]), str(test["output"])


def prints(outcome: Outcome, expected: str) -> bool:
    """Whether a script ended well and printed what it should."""
    return outcome.status == 0 and _lines(outcome.output) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
