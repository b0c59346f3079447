"""Reward for mathematical answers: 1 if the result equals the right one as mathematics, else 0."""

import json
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from raytune.rewards.base import Completion, RewardUnavailable, Score, Unscored, as_text

WORKER = Path(__file__).with_name("math_worker.py")
START_SECONDS = 120.0
"""How long the comparing process may take to import its libraries; a cold disk takes many seconds."""


class MathReward:
    """Compares answers with math-verify in a process of its own, which is killed at the limit; any thread may call.

    An answer that cannot be compared in time is wrong, as is one without a result: a policy must not get rid of bad
    answers by making them hard to check. A right answer that has no mathematics, or takes too long itself, is a
    failure; of a row without one it says nothing.

    What a policy thought before </think> does not count.

    Args: column: where the right answers are: LaTeX, with or without dollar signs, a number, or a text that ends in
    one. seconds: limit for one comparison.
    Errors: RewardUnavailable if the process cannot be started.
    """

    def __init__(self, *, column: str, seconds: float = 3.0) -> None:
        self._column = column
        self._seconds = seconds
        self._worker: LineProcess | None = None
        self._lock = threading.Lock()

    def __call__(self, completions: Sequence[Completion], **columns: Sequence[object]) -> list[Score]:
        pairs = zip(completions, columns[self._column], strict=True)
        return [self._one(as_text(answer), truth) for answer, truth in pairs]

    def _one(self, answer: str, truth: object) -> Score:
        if truth is None:
            return None
        text = as_text(truth)
        if not text.strip() or self._ask({"truth": text}) is not True:
            return Unscored(f"{self._column} {truth!r} is not understood as mathematics")
        return float(self._ask({"truth": text, "answer": answer.rpartition("</think>")[2]}) is True)

    def _ask(self, question: dict[str, str]) -> bool | None:
        """The process's reply; None when it took too long or died, and then the next question starts a new one."""
        with self._lock:
            if self._worker is None or not self._worker.alive():
                self.close_worker()
                self._worker = start_worker()
            line = self._worker.ask(json.dumps(question), self._seconds)
            if line is None:
                self.close_worker()
            return None if line is None else json.loads(line) is True

    def close_worker(self) -> None:
        """Kill the comparing process; the next comparison starts another one."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def start_worker() -> "LineProcess":
    """Start a comparing process and wait until it is ready. Raises RewardUnavailable with its last words."""
    # -P: the folder of the script has a math.py and must not come before the standard library.
    worker = LineProcess([sys.executable, "-P", str(WORKER)])
    if worker.read_line(START_SECONDS) != "ready":
        said = worker.kill()
        raise RewardUnavailable(
            f"the process that compares mathematical answers did not start within {START_SECONDS:g} s",
            where=said or "it said nothing",
            fix="Install math-verify beside raytune: pip install math-verify.",
        )
    return worker


class LineProcess:
    """A process that answers a line with a line. It ends by itself when its owner does, because its input ends."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)

    def ask(self, line: str, seconds: float) -> str | None:
        """Send a line and give the reply; None if the process died or took longer."""
        try:
            self._input.write(line.encode() + b"\n")
        except BrokenPipeError:
            return None
        return self.read_line(seconds)

    def read_line(self, seconds: float) -> str | None:
        """The next line without its end; None if the process died or took longer."""
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not self._selector.select(max(deadline - time.monotonic(), 0)):
                return None
            part = self._output.read(65536)
            if not part:
                return None
            line += part
        return line.decode().rstrip("\n")

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def kill(self) -> str:
        """End the process and give the last line of what it said on stderr."""
        self._selector.close()
        self._process.kill()
        _, said = self._process.communicate()
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
