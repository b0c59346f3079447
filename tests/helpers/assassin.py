"""Kills or halts processes of a run in the middle of a phase: `Assassin(plan)` in place of the loop's watchdog."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import ray

from actors.policy import PolicyGroup

# A stopped process cannot finish what it is asked for before it is killed.
_HALT = 0.3
_END = 30.0
_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Murder:
    """The `count`-th time (from 1) that `phase` begins, the process of `title` dies in it, or stands still for ever.

    Args: place: among the processes of that title; of a PolicyWorker its rank, where `ranks_of` is watching. newborn:
    not one that is there, but the first that is started from then on; so it is where none is there at all.

    Example: Murder("update", 3, "PolicyWorker", place=1)
    """

    phase: str
    count: int
    title: str
    place: int = 0
    hangs: bool = False
    newborn: bool = False


class Assassin:
    """Counts phases, and stops its victims as a phase begins to kill them a moment later.

    Args: find: the process of a murder; None takes it by the title.
    """

    def __init__(self, plan: Sequence[Murder], find: Callable[[Murder], psutil.Process] | None = None) -> None:
        self._plan, self._counts = list(plan), dict[str, int]()
        self._find = find
        self.done: list[Murder] = []
        self.victims: list[psutil.Process] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._counts[name] = self._counts.get(name, 0) + 1
        for murder in [one for one in self._plan if (one.phase, one.count) == (name, self._counts[name])]:
            there = [one for one in running(murder.title) if one not in self.victims]
            if self._find is not None and not murder.newborn:
                self._strike(murder, self._find(murder))
            elif there and not murder.newborn:
                self._strike(murder, there[murder.place])
            else:
                # Not waited for: it may be started only by what this phase is about to do.
                known = [*there, *self.victims]
                threading.Thread(target=self._lie_in_wait, args=(murder, known), daemon=True).start()
        yield

    def watch(self, patch: pytest.MonkeyPatch, owner: type[Any], method: str, *, name: str) -> None:
        """Have each call of a class's method be a phase too."""
        own = getattr(owner, method)

        def watched(*args: Any, **keys: Any) -> Any:
            with self.phase(name):
                return own(*args, **keys)

        patch.setattr(owner, method, watched)

    def close(self) -> None: ...

    def survivors(self) -> list[psutil.Process]:
        """Victims that are there still. The last may be dying; one that hangs is killed by whom it holds up."""
        return psutil.wait_procs(self.victims, timeout=_END)[1]

    def _lie_in_wait(self, murder: Murder, known: Collection[psutil.Process]) -> None:
        self._strike(murder, processes_of(murder.title, besides=known)[murder.place])

    def _strike(self, murder: Murder, victim: psutil.Process) -> None:
        victim.suspend()
        if not murder.hangs:
            threading.Timer(_HALT, _kill, [victim]).start()
        self.done.append(murder)
        self.victims.append(victim)


def processes_of(title: str, besides: Collection[psutil.Process] = ()) -> list[psutil.Process]:
    """Actors of this process's Ray by the name of their class, oldest first; waits for one that is being started."""
    deadline = time.monotonic() + _DEADLINE
    while not (found := [one for one in running(title) if one not in besides]):
        assert time.monotonic() < deadline, f"there is no {title}"
        time.sleep(0.1)
    return found


def running(title: str) -> list[psutil.Process]:
    """The same of those that are there, none or more."""
    found = [one for one in psutil.Process().children(recursive=True) if f"ray::{title}" in _title(one)]
    return sorted(found, key=lambda one: one.create_time())


def ranks_of(patch: pytest.MonkeyPatch) -> dict[tuple[str, int], psutil.Process]:
    """The ranks by role and number, brought up to date whenever a group has started its own."""
    ranks: dict[tuple[str, int], psutil.Process] = {}
    start = PolicyGroup.start_policy

    def start_and_note(group: PolicyGroup, *args: Any, **sizes: Any) -> Any:
        facts = start(group, *args, **sizes)
        told = ray.get([one.__ray_call__.remote(lambda _: os.getpid()) for one in group.workers], timeout=_DEADLINE)
        ranks.update({(group.role, rank): psutil.Process(pid) for rank, pid in enumerate(told)})
        return facts

    patch.setattr(PolicyGroup, "start_policy", start_and_note)
    return ranks


def _kill(victim: psutil.Process) -> None:
    # It may have ended by itself, with an actor that it belonged to.
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""
