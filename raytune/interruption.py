"""How a run hears Ctrl-C and SIGTERM."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raytune.log import get_logger

log = get_logger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds in which a second signal is an echo of the first: `timeout` sends one to the process and one to its group.
_ECHO = 1.0


class Interruption:
    """Ctrl-C (and SIGTERM): before the first step it ends the run at once; later the first one lets the running step
    finish and save, and the second one ends at once."""

    def __init__(self) -> None:
        self.caught = False
        self._first = 0.0
        self._saves = False

    def listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._catch)

    def save_from_now_on(self) -> None:
        # Python drops a KeyboardInterrupt that comes within a callback of its own; the flag stays.
        if self.caught:
            raise KeyboardInterrupt
        self._saves = True

    def _catch(self, _number: int, _frame: object) -> None:
        again, now = self.caught, time.monotonic()
        if again and now - self._first < _ECHO:
            return
        if not again:
            self.caught, self._first = True, now
        if again or not self._saves:
            raise KeyboardInterrupt
        log.info("stopping after this step; press Ctrl-C again to end without saving")


@contextmanager
def listening() -> Iterator[Interruption]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    interruption = Interruption()
    interruption.listen()
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
