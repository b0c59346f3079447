"""`python -m tests.helpers.dying PHASE COUNT FILE`: a `raytune train FILE` whose driver dies in a phase of the loop."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from raytune import cli
from raytune.launch_rl import learn

# The shortest phases take longer.
_SOON = 0.02


class Dying:
    """Takes the watchdog's place; the process dies in phase `name` when that begins for the `count`-th time."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._left = name, count

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._left -= name == self._name
        if name == self._name and self._left == 0:
            threading.Timer(_SOON, os.kill, (os.getpid(), signal.SIGKILL)).start()
        yield

    def close(self) -> None: ...


if __name__ == "__main__":
    where, when, file = sys.argv[1:]
    learn.watchdog_of = lambda folder, **deadlines: Dying(where, int(when))  # type: ignore[assignment,return-value]
    sys.argv = ["raytune", "train", file]
    cli.main()
