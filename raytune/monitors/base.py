"""Where numbers go while a run works."""

from collections.abc import Sequence
from typing import Protocol

Entry = dict[str, float | int]


class Monitor(Protocol):
    """One destination of log entries. The loop logs, the monitor presents."""

    def log(self, step: int, entry: Entry) -> None:
        """Take one entry; keys are named as in trainer_log.jsonl."""
        ...

    def advance(self, step: int) -> None:
        """Take note that a step is done, logged or not."""
        ...

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        """Forget what came after `step`: the run goes on from there. Args: history: the entries up to it."""
        ...

    def finish(self) -> None:
        """Flush and close."""
        ...


class Monitors:
    """Several monitors behind the interface of one."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._monitors = list(monitors)

    def log(self, step: int, entry: Entry) -> None:
        for monitor in self._monitors:
            monitor.log(step, entry)

    def advance(self, step: int) -> None:
        for monitor in self._monitors:
            monitor.advance(step)

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        for monitor in self._monitors:
            monitor.rewind(step, history)

    def finish(self) -> None:
        for monitor in self._monitors:
            monitor.finish()
