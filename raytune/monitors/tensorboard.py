"""TensorBoard event files, written without TensorFlow or torch."""

import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute]
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from raytune.monitors.base import Entry

# Counters that say where a run stands, not how it does.
_SKIPPED = {"current_steps", "total_steps", "percentage", "elapsed_time", "remaining_time"}


class TensorBoardMonitor:
    """Scalars under train/ and eval/, as Hugging Face's callback names them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))

    def log(self, step: int, entry: Entry) -> None:
        values = [
            Summary.Value(tag=_tag(key), simple_value=float(value))
            for key, value in entry.items()
            if key not in _SKIPPED
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def advance(self, step: int) -> None:
        """Nothing to show between log entries."""

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        """Have readers drop what comes after `step`, as they do when a session starts there."""
        started = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=started))

    def finish(self) -> None:
        self._writer.close()


class TensorBoardTexts:
    """Texts, in an event file of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), filename_suffix=".texts")

    def write(self, step: int, tag: str, text: str) -> None:
        """Show a text in Markdown under a tag."""
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=text_pb(tag, text)))
        self._writer.flush()

    def finish(self) -> None:
        """Flush and close."""
        self._writer.close()


def _tag(key: str) -> str:
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
