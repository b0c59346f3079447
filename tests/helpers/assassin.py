"""Kills or halts processes of a run in the middle of a phase: `Assassin(plan)` in place of the loop's watchdog."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil

# A stopped process cannot finish what it is asked for before it is killed.
_HALT = 0.3


@dataclass(frozen=True, slots=True)
class Murder:
    """The `count`-th time (from 1) that `phase` begins, the process of `title` dies in it, or stands still for ever.

    Example: Murder("update", 3, "PolicyWorker", place=1)
    """

    phase: str
    count: int
    title: str
    place: int = 0
    hangs: bool = False


class Assassin:
    """Counts phases, and stops its victims as a phase begins to kill them a moment later.

    Args: find: the process of a murder; None takes it by the title.
    """

    def __init__(self, plan: Sequence[Murder], find: Callable[[Murder], psutil.Process] | None = None) -> None:
        self._plan, self._counts = list(plan), dict[str, int]()
        self._find = find or (lambda murder: processes_of(murder.title)[murder.place])
        self.done: list[Murder] = []
        self.victims: list[psutil.Process] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._counts[name] = self._counts.get(name, 0) + 1
        for murder in [one for one in self._plan if (one.phase, one.count) == (name, self._counts[name])]:
            self._strike(murder)
        yield

    def close(self) -> None: ...

    def _strike(self, murder: Murder) -> None:
        victim = self._find(murder)
        victim.suspend()
        if not murder.hangs:
            threading.Timer(_HALT, victim.kill).start()
        self.done.append(murder)
        self.victims.append(victim)


def processes_of(title: str) -> list[psutil.Process]:
    """Actors of this process's Ray by the name of their class, oldest first; waits for one that is being started."""
    deadline = time.monotonic() + 60.0
    while True:
        found = [one for one in psutil.Process().children(recursive=True) if f"ray::{title}" in _title(one)]
        if found:
            return sorted(found, key=lambda one: one.create_time())
        assert time.monotonic() < deadline, f"there is no {title}"
        time.sleep(0.1)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""
