"""What a rule over several keys returns."""

from collections.abc import Callable
from dataclasses import dataclass

from raytune.config.run import RunConfig


# Made by the rules, read by raytune.config.load and raytune.config.rules.
@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a config breaks, with the keys that break it.

    Example: Broken("fp16 excludes bf16", ("fp16", "bf16"), "Keep one of them.")
    """

    what: str
    keys: tuple[str, ...]
    fix: str | None = None


Rule = Callable[[RunConfig], Broken | None]


def broken(condition: bool, what: str, *keys: str, fix: str | None = None) -> Broken | None:
    """Return what is wrong if the condition holds."""
    return Broken(what, keys, fix) if condition else None
