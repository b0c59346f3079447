"""trainer_log.jsonl: one line a log entry, readable while the run works."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from raytune.monitors.base import Entry


class JsonlMonitor:
    """Appends entries to `path`. A resumed run first drops the lines past its checkpoint."""

    def __init__(self, path: Path, *, history: Sequence[Entry]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._begin(history)

    def _begin(self, history: Sequence[Entry]) -> None:
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text("".join(_line(entry) for entry in history))
        temporary.replace(self._path)
        self._file = self._path.open("a")

    def log(self, step: int, entry: Entry) -> None:
        self._file.write(_line(entry))
        self._file.flush()

    def advance(self, step: int) -> None:
        """Nothing to show between log entries."""

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        """Drop the lines that are not in `history`."""
        self._file.close()
        self._begin(history)

    def finish(self) -> None:
        self._file.close()


def _line(entry: Entry) -> str:
    """JSON knows no NaN and no infinity: they are null, as a mean over nothing should be."""
    return json.dumps({key: value if math.isfinite(value) else None for key, value in entry.items()}) + "\n"
