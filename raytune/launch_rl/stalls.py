"""What is said of a phase that takes too long: which one, and what every process does meanwhile."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from actors.stacks import collect
from raytune.stages.interfaces import Rollouts
from raytune.stages.samples import ScoredGroup
from raytune.stages.watchdog import Watchdog

FILE = "stacks.txt"
# Of gathering, sending and loading weights together; each part has a deadline of its own.
_PUBLISH_SECONDS = 600.0
_RECOVERY_SECONDS = 3600.0


def watchdog_of(folder: Path, *, ranks: float, rollout: float) -> Watchdog:
    """Watches the phases of a step by the deadlines that their waits have, in seconds."""
    deadlines = {
        "rollout": rollout,
        "experience": ranks,
        "update": ranks,
        "publish": min(ranks, _PUBLISH_SECONDS),
        "save": ranks,
        "recovery": _RECOVERY_SECONDS,
    }
    return Watchdog(deadlines, lambda phase: write_stacks(phase, folder))


class WatchedRollouts:
    """Rollouts of which each wait is a phase, whoever waits: the loop or a validation."""

    def __init__(self, rollouts: Rollouts, phase: Callable[[str], AbstractContextManager[None]]) -> None:
        self._phase = phase
        self.submit, self.pending, self._wait = rollouts.submit, rollouts.pending, rollouts.wait

    def wait(self, timeout: float) -> list[ScoredGroup]:
        """As Rollouts.wait."""
        with self._phase("rollout"):
            return self._wait(timeout)


def write_stacks(phase: str, folder: Path) -> str:
    """Append the stacks of all processes to a file of the run; returns where they are, and each one's main thread."""
    found = collect()
    said = "\n".join(f"  {one.what} (node {one.node}, process {one.pid}): {one.innermost}" for one in found)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(f"phase {phase}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n\n")
        for one in found:
            file.write(f"== {one.what}, node {one.node}, process {one.pid}\n{one.text.strip()}\n\n")
    return f"all stacks are in {folder / FILE}; the main threads are at\n{said}"
