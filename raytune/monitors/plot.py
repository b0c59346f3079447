"""training_loss.png: the loss of every log entry with its smoothed course, and the evaluations."""

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
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    train = [(entry["current_steps"], entry["loss"]) for entry in history if "loss" in entry]
    evals = [(entry["current_steps"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    figure, axes = pyplot.subplots(figsize=(8, 5))
    if train:
        _draw_train(axes, [float(step) for step, _ in train], [float(loss) for _, loss in train])
    if evals:
        axes.plot(*zip(*evals, strict=True), color="#d95f02", marker="o", label="eval loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    if train or evals:
        axes.legend()
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    temporary.replace(path)


def _draw_train(axes: Any, steps: list[float], losses: list[float]) -> None:
    axes.plot(steps, losses, color="#1f77b4", alpha=0.3, label="train loss")
    axes.plot(steps, smooth(losses), color="#1f77b4", label="train loss, smoothed")
