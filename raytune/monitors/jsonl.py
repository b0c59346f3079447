"""trainer_log.jsonl: one line a log entry, readable while the run works."""

import json
from pathlib import Path

from raytune.monitors.base import Entry


class JsonlMonitor:
    """Appends entries to `path`. A resumed run first drops the lines past its checkpoint."""

    def __init__(self, path: Path, *, history: list[Entry]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in history))
        temporary.replace(path)
        self._file = path.open("a")

    def log(self, step: int, entry: Entry) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def advance(self, step: int) -> None:
        """Nothing to show between log entries."""

    def finish(self) -> None:
        self._file.close()
