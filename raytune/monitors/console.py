"""The terminal: a progress bar for people, plain lines for files and pipes."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raytune.monitors.base import Entry

_ANSWERS = {"reward": ("reward", 3), "kl": ("kl", 4), "entropy": ("entropy", 3), "completion_length": ("length", 1)}
"""What reinforcement learning is judged by: key -> name and digits."""


class ConsoleMonitor:
    """Shows loss, learning rate, tokens/s and the time left. Everything goes to stderr.

    Args: total_steps: length of the run. done: steps done before. bar: False prints lines even on a terminal.
    """

    def __init__(self, *, total_steps: int, done: int = 0, bar: bool = True) -> None:
        self._console = Console(file=sys.stderr, highlight=False)
        self._progress: Progress | None = None
        if bar and self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            text = TextColumn("{task.fields[note]}")
            self._progress = Progress(*columns, text, console=self._console)
            self._progress.start()
            self._task = self._progress.add_task("train", total=total_steps, completed=done, note="")

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def log(self, step: int, entry: Entry) -> None:
        text = describe(entry)
        if self._progress is None:
            self._console.print(f"step {step}/{entry['total_steps']}  {text}", soft_wrap=True)
        elif "loss" in entry:
            self._progress.update(self._task, completed=step, note=text)
        else:
            self._progress.console.print(f"step {step}: {text}", soft_wrap=True)

    def rewind(self, step: int, history: Sequence[Entry]) -> None:
        """Move the bar back; lines that were printed stay."""
        self.advance(step)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def describe(entry: Entry) -> str:
    """The numbers of an entry that a person looks at, in one line."""
    shown = []
    if "loss" in entry:
        shown = [f"{name} {entry[key]:.{digits}f}" for key, (name, digits) in _ANSWERS.items() if key in entry]
        shown += [f"loss {entry['loss']:.4f}", f"lr {entry['lr']:.2e}", f"grad_norm {entry['grad_norm']:.2f}"]
        shown += [f"{entry['throughput']:.0f} tokens/s", f"epoch {entry['epoch']:.2f}"]
        shown += [f"{_clock(entry['remaining_time'])} left"]
    evals = {key: value for key, value in entry.items() if key.startswith("eval_") and not key.endswith("runtime")}
    return "  ".join(shown + [f"{key} {value:.4f}" for key, value in evals.items()])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
