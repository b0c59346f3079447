"""The seams between an algorithm and the processes that work for it.

An algorithm (loop.py and its successors) knows these Protocols alone; actors implement them, raytune.launch connects
them, and tests put hand-written fakes in their place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raytune.data.batches import Position


# Made by a Trainer, read by raytune.stages.loop.
@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step over all ranks.

    Args: loss: mean over labelled tokens, in nats. num_tokens: tokens that went through the model, without padding.
    num_label_tokens: those that were trained on. num_rows: rows of the global batch.

    Example: StepResult(loss=1.2, num_rows=16, num_tokens=2048, num_label_tokens=900, grad_norm=0.7, learning_rate=2e-4)
    """

    loss: float
    num_rows: int
    num_tokens: int
    num_label_tokens: int
    grad_norm: float
    learning_rate: float
    skipped: bool = False


# Made by a Trainer, read by raytune.stages.loop.
@dataclass(frozen=True, slots=True)
class EvalResult:
    """One evaluation set: mean loss in nats and share of labelled tokens whose argmax is right.

    Example: EvalResult(loss=1.1, accuracy=0.7, num_rows=109, num_label_tokens=8000)
    """

    loss: float
    accuracy: float
    num_rows: int
    num_label_tokens: int


class Trainer(Protocol):
    """A group of ranks that holds the model. The loop owns when things happen, the trainer how."""

    def train_step(self, step: int, position: Position) -> StepResult:
        """Do optimizer step number `step` (from 1) on the global batch that begins at `position`."""
        ...

    def evaluate(self, name: str) -> EvalResult:
        """Run the evaluation set `name` ("" when there is one only)."""
        ...

    def metric_step(self, metric: float) -> None:
        """Tell metric-driven learning-rate schedules the newest evaluation."""
        ...

    def save(self, folder: Path, *, with_state: bool) -> None:
        """Write weights, and with `with_state` everything needed to go on, into an existing folder."""
        ...
