"""Says aloud which part of a run takes too long, and what every process does meanwhile.

It raises nothing: each wait within a phase has a deadline of its own, at which it ends with an error.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from raytune.log import get_logger

log = get_logger(__name__)


class Watchdog:
    """A thread that warns when a phase has lasted for half of its deadline, and again each time it doubles.

    Args: deadlines: seconds, by phase. look: makes a picture of all processes and says where it can be seen; it has a
    deadline of its own.

    Example: Watchdog({"update": 1800.0}, look=lambda phase: "stacks are in saves/stacks.txt")
    """

    def __init__(self, deadlines: Mapping[str, float], look: Callable[[str], str]) -> None:
        self._deadlines, self._look = dict(deadlines), look
        self._changed = threading.Condition()
        self._phase: str | None = None
        self._begun = 0.0
        self._warn_after = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within: phase `name` is under way."""
        self._set(name)
        try:
            yield
        finally:
            self._set(None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=1.0)

    def _set(self, name: str | None) -> None:
        with self._changed:
            self._phase, self._begun = name, time.monotonic()
            self._warn_after = self._deadlines[name] / 2 if name is not None else 0.0
            self._changed.notify()

    def _watch(self) -> None:
        while (late := self._late()) is not None:
            phase, seconds = late
            log.warning(
                "phase %s has lasted for %.0f s, of at most %g s: %s",
                phase,
                seconds,
                self._deadlines[phase],
                self._look(phase),
            )

    def _late(self) -> tuple[str, float] | None:
        """Wait for a phase to be late; returns it and its seconds, None at the end."""
        with self._changed:
            while not self._closed:
                lasted = time.monotonic() - self._begun
                if self._phase is not None and lasted >= self._warn_after:
                    self._warn_after = 2 * lasted
                    return self._phase, lasted
                self._changed.wait(None if self._phase is None else self._warn_after - lasted)
        return None
