"""What the loop of ppo and grpo goes back to when its trainer ranks are lost.

lost ranks -> last checkpoint -> state, prompts and logs as of then -> new ranks -> weights published under a new number
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import PolicyLostError, TrainError
from raytune.stages.samples import ScoredGroup


# Made by raytune.launch_rl, used by the loop.
@dataclass(frozen=True, slots=True)
class Recovery:
    """How lost ranks are replaced.

    Args: rebuild: starts new ranks, with the weights and state of a checkpoint, and connects them; None is what the run
    began without any. Raises PolicyLostError if those are lost too. start: the checkpoint that the run itself began
    with. most: times in a row.

    Example: Recovery(rebuild, start=None, most=3)
    """

    rebuild: Callable[[Path | None], None]
    start: Path | None = None
    most: int = 3


@dataclass
class Losses:
    """Counts recoveries since the run last got further than it had ever been."""

    most: int
    count: int = 0
    furthest: int = -1

    def add(self, lost: PolicyLostError, step: int) -> None:
        """Take note of ranks lost at a step. Raises TrainError when they are lost too often."""
        if step > self.furthest:
            self.furthest, self.count = step, 0
        self.count += 1
        if self.count <= self.most:
            return
        if self.most == 0:
            raise TrainError(lost.what, where=lost.where, fix=lost.fix) from lost
        what = f"the trainer ranks were lost {self.count} times in a row after step {step}, at last: {lost.what}"
        raise TrainError(what, where=lost.where, fix=lost.fix) from lost


def resume_point(checkpoints: CheckpointStore, start: Path | None, *, with_state: bool) -> Path | None:
    """The newest checkpoint that ranks can go on from: one of this run, or that which it began with, if any.

    Args: with_state: whether the run's own checkpoints hold more than weights.
    """
    newest = checkpoints.latest() if with_state else None
    return newest or start


@dataclass
class Versions:
    """Numbers of published weights. A number is never given twice, not even for the same step after a recovery.

    Without a recovery a version is its step. Rollouts tell versions, the loop counts in steps.

    Example: versions = Versions(); versions.give(3) == 3; versions.go_back(); versions.give(3) == 4
    """

    newest: int = 0
    runs: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """(first version, version - step) from each recovery on."""
    pending: bool = False

    def give(self, step: int) -> int:
        """The version under which the weights of a step are to be published now."""
        if self.pending:
            self.runs.append((self.newest + 1, self.newest + 1 - step))
            self.pending = False
        self.newest = step + self.runs[-1][1]
        return self.newest

    def step_of(self, version: int) -> int:
        return version - next((offset for first, offset in reversed(self.runs) if first <= version), 0)

    def is_current(self, version: int) -> bool:
        """Whether it was published since the last recovery."""
        return not self.pending and version >= self.runs[-1][0]

    def go_back(self) -> None:
        """What was published so far is of ranks that are gone."""
        self.pending = True


@dataclass
class Ages:
    """Which groups are too far from the weights that would learn from them, behind or ahead.

    After a recovery answers may come from weights that were never saved: those are ahead of the run.

    Args: most: steps that they may be apart.
    """

    most: int
    versions: Versions = field(default_factory=Versions)
    ahead: dict[int, int] = field(default_factory=dict)
    """Newest step that the answers to these prompts, which were here or under way at a recovery, may be of."""

    def dated(self, group: ScoredGroup) -> ScoredGroup:
        """The group with steps in place of versions."""
        if all(map(self.versions.is_current, group.oldest)):
            self.ahead.pop(group.number, None)
        return replace(group, oldest=tuple(map(self.versions.step_of, group.oldest)))

    def fits(self, group: ScoredGroup, step: int) -> bool:
        newest = max(self.ahead.get(group.number, step), *group.oldest)
        return step - min(group.oldest) <= self.most and newest - step <= self.most

    def go_back(self, ahead: Mapping[int, int]) -> None:
        """Take note of a recovery. Args: ahead: by prompt, the newest step that its answers may be of."""
        self.ahead |= {number: max(step, self.ahead.get(number, step)) for number, step in ahead.items()}
        self.versions.go_back()
