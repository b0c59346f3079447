"""training_loss.png and training_reward.png: a log history with its smoothed course, and the evaluations."""

import math
from pathlib import Path
from typing import Any

from raytune.monitors.base import Entry

# Weight of the newest value in the smoothed line.
_NEWEST = 0.2


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average: s[t] = 0.2 * x[t] + 0.8 * s[t-1], s[0] = x[0]."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else _NEWEST * value + (1 - _NEWEST) * smoothed[-1])
    return smoothed


def plot_loss(history: list[Entry], path: Path) -> None:
    """Draw the losses of a log history into a PNG file."""
    _plot(history, path, key="loss", held="eval_loss", names=("train loss", "eval loss", "loss (nats per token)"))


def plot_reward(history: list[Entry], path: Path) -> None:
    """Draw the mean rewards of a log history, and those of validations, into a PNG file."""
    _plot(history, path, key="reward", held="eval_reward", names=("reward", "validation reward", "mean reward"))


def _plot(history: list[Entry], path: Path, *, key: str, held: str, names: tuple[str, str, str]) -> None:
    """Args: key, held: of training and evaluation in log entries. names: of the two lines and of the axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    train, evals = _course(history, key), _course(history, held)
    figure, axes = pyplot.subplots(figsize=(8, 5))
    if train:
        _draw_train(axes, [step for step, _ in train], [value for _, value in train], names[0])
    if evals:
        axes.plot(*zip(*evals, strict=True), color="#d95f02", marker="o", label=names[1])
    axes.set_xlabel("step")
    axes.set_ylabel(names[2])
    if train or evals:
        axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    temporary.replace(path)


def _course(history: list[Entry], key: str) -> list[tuple[float, float]]:
    """(step, value) of the entries that have a number under `key`; a step without any score has none."""
    found = [(float(entry["current_steps"]), float(entry[key])) for entry in history if key in entry]
    return [(step, value) for step, value in found if math.isfinite(value)]


def _draw_train(axes: Any, steps: list[float], values: list[float], name: str) -> None:
    axes.plot(steps, values, color="#1f77b4", alpha=0.3, label=name)
    axes.plot(steps, smooth(values), color="#1f77b4", label=f"{name}, smoothed")
