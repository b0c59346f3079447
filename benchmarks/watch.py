"""Run a training command in a process of its own and watch it from outside, the same way for every program."""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_SECONDS = 0.02
"""How often the log is looked at: the error of a step's time."""
MEMORY_SECONDS = 30.0
"""How often memory is sampled: that walks all pages of all processes, some 0.2 s for those of a run on Ray."""


@dataclass(frozen=True, slots=True)
class Step:
    """One logged step. Example: Step(number=3, loss=2.51, seconds=14.2, cpu_seconds=20.1), counted from the start."""

    number: int
    loss: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Watched:
    """A finished run. Memory in bytes: of the whole process tree (shared pages once) and of its largest process."""

    steps: tuple[Step, ...]
    seconds: float
    peak_tree: int
    peak_process: int


class RunError(RuntimeError):
    """The watched program failed or did not end in time; the message holds the end of its output."""


def watch(
    command: Sequence[str], *, log: Path, output: Path, env: Mapping[str, str], cwd: Path, deadline: float
) -> Watched:
    """Run `command` to its end.

    Args: log: the file of JSON lines with `current_steps` and `loss` that the program appends to, one a step.
        output: where stdout and stderr go. deadline: seconds after which the run is ended.
    Raises: RunError when it fails, runs too long, or logs no step.
    """
    started = time.monotonic()
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=dict(env), cwd=cwd)
    tree, reader = _Tree(process.pid), _Reader(log)
    sampled = 0.0
    while process.poll() is None:
        now = time.monotonic() - started
        if now > deadline:
            tree.end()
            process.wait(timeout=30)
            raise RunError(f"{command[0]} did not end within {deadline:.0f} s\n{_tail(output)}")
        reader.read(now, tree)
        if now - sampled >= MEMORY_SECONDS:
            tree.sample_memory()
            sampled = now
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - started
    reader.read(seconds, tree)
    if process.returncode != 0 or not reader.steps:
        raise RunError(f"{' '.join(command)} ended with {process.returncode}\n{_tail(output)}")
    return Watched(tuple(reader.steps), seconds, tree.peak_all, tree.peak_one)


class _Tree:
    """The processes below one process; what a process used before it ended stays counted."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[int, float] = {}
        self.peak_all = 0
        self.peak_one = 0

    def sample_memory(self) -> None:
        sizes = []
        for process in self._processes():
            try:
                sizes.append(process.memory_full_info().pss)
            except psutil.Error:
                continue
        self.peak_all = max(self.peak_all, sum(sizes))
        self.peak_one = max(self.peak_one, max(sizes, default=0))

    def cpu_seconds(self) -> float:
        for process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            self._cpu[process.pid] = times.user + times.system
        return sum(self._cpu.values())

    def end(self) -> None:
        for process in reversed(self._processes()):
            try:
                process.kill()
            except psutil.Error:
                continue

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []


class _Reader:
    """Follows a log file and notes when each step arrived."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.steps: list[Step] = []

    def read(self, now: float, tree: _Tree) -> None:
        if not self._path.exists() or self._path.stat().st_size <= self._offset:
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                self.steps.append(Step(entry["current_steps"], entry["loss"], now, tree.cpu_seconds()))


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").splitlines()[-15:])
