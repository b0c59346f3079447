"""Keys that cannot go together, one small rule each."""

from collections.abc import Callable
from dataclasses import dataclass

from raytune.config.run import RunConfig


# Made by rules, read by raytune.config.load.
@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a config breaks.

    Example: Broken("bf16 and fp16 exclude each other", ("bf16", "fp16"), "Keep one.")
    """

    what: str
    keys: tuple[str, ...]
    fix: str | None = None


Rule = Callable[[RunConfig], Broken | None]


def one_half_precision(config: RunConfig) -> Broken | None:
    if config.precision.fp16 and (config.precision.bf16 or config.precision.pure_bf16):
        return Broken("fp16 excludes bf16 and pure_bf16", ("fp16", "bf16", "pure_bf16"), "Keep one of them.")
    return None


RULES: tuple[Rule, ...] = (one_half_precision,)
