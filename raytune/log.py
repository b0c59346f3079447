"""Logging: one line per event, the rank in front where there is one."""

import logging
import sys


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; all of them hang below "raytune"."""
    return logging.getLogger(name if name.startswith("raytune") else f"raytune.{name}")


def configure(*, level: str = "info", rank: int | None = None) -> None:
    """Send the "raytune" logger to stderr. Ranks other than 0 speak only from warnings upwards.

    Args: level: a logging level name. rank: this process's rank in its group, None for the driver.
    """
    root = logging.getLogger("raytune")
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if rank is None else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"{prefix}%(levelname)s %(message)s"))
    root.addHandler(handler)
    root.propagate = False
    quiet = rank is not None and rank > 0
    root.setLevel(logging.WARNING if quiet else getattr(logging, level.upper()))
