"""What the driver says of answers that have no reward, or got it late: workers' own logs reach nobody."""

from collections.abc import Sequence

from raytune.errors import TrainError
from raytune.log import get_logger
from raytune.rewards.table import join
from raytune.stages.samples import ScoredGroup
from raytune.stages.scoring import ENVIRONMENT

log = get_logger(__name__)

MOST_KINDS = 5
"""Failures of one of them that are told: some have the answer in them, and no two are the same."""


class Failures:
    """Warns of each group that was scored again, and of a function's or the environment's failures when met first.

    Example: Failures().tell(scored)
    """

    def __init__(self) -> None:
        self._told: dict[str, set[str]] = {}

    def tell(self, group: ScoredGroup) -> None:
        """Warn of what is new in a group."""
        if group.trouble is not None:
            log.warning("prompt %s was scored again: %s", group.number, group.trouble)
        for name, why in group.table.errors.items():
            told = self._told.setdefault(name, set())
            if why in told or len(told) == MOST_KINDS:
                continue
            told.add(why)
            rest = f"; its further failures are only counted (failed_{name})" if len(told) == MOST_KINDS else ""
            who = "the environment" if name == ENVIRONMENT else f"the reward function '{name}'"
            log.warning("%s failed (prompt %s, row %s): %s%s", who, group.number, group.row, why, rest)


def nothing_scored(step: int, groups: Sequence[ScoredGroup]) -> TrainError:
    """The error of an update that no answer of its groups has a reward for."""
    errors = join([group.table for group in groups]).errors
    return TrainError(
        f"update {step} has no answer to learn from: none of the step could be scored",
        where="; ".join(f"{name}: {why}" for name, why in errors.items()) or "no reward function gave a score",
        fix="Mend what failed; raise reward_time_limit, environment_time_limit or rollout_timeout if it is too short.",
    )
