"""Calling what other people wrote."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType


@dataclass(slots=True)
class Attempt(AbstractContextManager["Attempt"]):
    """Keeps what a block raises instead of letting it through: people's functions may raise anything, SystemExit too.

    A keyboard interrupt, a cancelled task and the like pass.

    Example: with Attempt() as attempt: score = f(); if attempt.raised is not None: ...
    """

    raised: BaseException | None = None

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.raised = raised if isinstance(raised, Exception | SystemExit) else None
        return self.raised is not None


def describe(raised: BaseException | None) -> str:
    """One line of what was raised."""
    return f"{type(raised).__name__}: {raised}".strip(": ")
