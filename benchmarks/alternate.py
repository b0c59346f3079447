"""Runs of several programs in turn, so that slow minutes of the machine fall on all of them."""

import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from benchmarks.watch import RunError


class Named(Protocol):
    """One program and how it is run."""

    @property
    def name(self) -> str: ...
    def label(self) -> str: ...


S = TypeVar("S", bound=Named)
F = TypeVar("F")


def alternate(
    sides: Sequence[S], run: Callable[[int, S], F], said: Callable[[int, S, F], str], *, repeats: int
) -> dict[S, list[F]]:
    """Run every side once, then every side again; returns the figures of each.

    A side that fails is named on stderr and left out from then on. Args: run: given the number of the turn, from 1.
    said: the line about a run, with that number.
    """
    runs: dict[S, list[F]] = {side: [] for side in sides}
    failed: set[S] = set()
    for turn in range(1, repeats + 1):
        for side in sides:
            if side in failed:
                continue
            try:
                figures = run(turn, side)
            except RunError as error:
                print(f"FAILED {side.name}: {side.label()}\n{error}", file=sys.stderr, flush=True)
                failed.add(side)
                continue
            runs[side].append(figures)
            print(said(turn, side, figures), file=sys.stderr, flush=True)
    return runs
