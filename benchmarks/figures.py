"""From the steps that were seen to the figures that are reported, and the tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.task import Task, Tokens
from benchmarks.watch import RunError, Step, Watched

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Figures:
    """What is reported of one run. Rates are of the steps after the warm-up; memory in bytes."""

    samples_per_second: float
    tokens_per_second: float
    trained_per_second: float
    cpu_per_sample: float
    whole_samples_per_second: float
    first_step_seconds: float
    peak_tree: int
    peak_process: int
    first_loss: float
    last_loss: float


def reduce(watched: Watched, task: Task, tokens: Tokens, whole: float) -> Figures:
    """Figures of one run; the rate is that of the steps after step `task.warmup`, from when each was logged."""
    steps = watched.steps
    if [step.number for step in steps] != list(range(1, task.steps + 1)):
        raise RunError(f"steps 1 to {task.steps} should have been logged, found {[step.number for step in steps]}")
    begin, end = steps[task.warmup - 1], steps[-1]
    seconds = end.seconds - begin.seconds
    rows = slice(task.warmup * task.batch, task.steps * task.batch)
    samples = len(tokens.lengths[rows])
    return Figures(
        samples_per_second=samples / seconds,
        tokens_per_second=sum(tokens.lengths[rows]) / seconds,
        trained_per_second=sum(tokens.trained[rows]) / seconds,
        cpu_per_sample=(end.cpu_seconds - begin.cpu_seconds) / samples,
        whole_samples_per_second=whole,
        first_step_seconds=steps[0].seconds,
        peak_tree=watched.peak_tree,
        peak_process=watched.peak_process,
        first_loss=mean_loss(steps[: task.warmup]),
        last_loss=mean_loss(steps[-task.warmup :]),
    )


def mean_loss(steps: Sequence[Step]) -> float:
    return statistics.fmean(step.loss for step in steps)


def median(runs: Sequence[Figures]) -> Figures:
    """The median of each figure by itself."""
    return Figures(
        samples_per_second=statistics.median(run.samples_per_second for run in runs),
        tokens_per_second=statistics.median(run.tokens_per_second for run in runs),
        trained_per_second=statistics.median(run.trained_per_second for run in runs),
        cpu_per_sample=statistics.median(run.cpu_per_sample for run in runs),
        whole_samples_per_second=statistics.median(run.whole_samples_per_second for run in runs),
        first_step_seconds=statistics.median(run.first_step_seconds for run in runs),
        peak_tree=int(statistics.median(run.peak_tree for run in runs)),
        peak_process=int(statistics.median(run.peak_process for run in runs)),
        first_loss=statistics.median(run.first_loss for run in runs),
        last_loss=statistics.median(run.last_loss for run in runs),
    )


def comparison_table(ours: Figures, theirs: Figures) -> str:
    """Markdown: one line a figure, both programs and the ratio between them."""
    lines = [
        "| figure | raytune | LLaMA-Factory | raytune / LLaMA-Factory |",
        "|---|---|---|---|",
        _line("samples/s, after the warm-up", ours.samples_per_second, theirs.samples_per_second, "{:.2f}"),
        _line("tokens/s without padding", ours.tokens_per_second, theirs.tokens_per_second, "{:.0f}"),
        _line("trained tokens/s (with a label)", ours.trained_per_second, theirs.trained_per_second, "{:.0f}"),
        _line("samples/s of the whole train_runtime", ours.whole_samples_per_second, theirs.whole_samples_per_second),
        _line("CPU seconds a sample", ours.cpu_per_sample, theirs.cpu_per_sample, "{:.2f}"),
        _line("seconds from command to first step", ours.first_step_seconds, theirs.first_step_seconds, "{:.1f}"),
        _line("peak memory, all processes (GiB)", ours.peak_tree / GIB, theirs.peak_tree / GIB, "{:.2f}"),
        _line("peak memory, largest process (GiB)", ours.peak_process / GIB, theirs.peak_process / GIB, "{:.2f}"),
        _line("loss, mean of the first steps", ours.first_loss, theirs.first_loss, "{:.4f}"),
        _line("loss, mean of the last steps", ours.last_loss, theirs.last_loss, "{:.4f}"),
    ]
    return "\n".join(lines)


def _line(name: str, ours: float, theirs: float, form: str = "{:.2f}") -> str:
    return f"| {name} | {form.format(ours)} | {form.format(theirs)} | {ours / theirs:.2f} |"


SETTINGS_HEAD = (
    "| settings | samples/s | CPU s a sample | peak memory (GiB) | first loss | last loss |\n|---|---|---|---|---|---|"
)


def settings_line(label: str, run: Figures) -> str:
    """One line of the table of settings."""
    return (
        f"| {label} | {run.samples_per_second:.2f} | {run.cpu_per_sample:.2f} | {run.peak_tree / GIB:.2f} "
        f"| {run.first_loss:.4f} | {run.last_loss:.4f} |"
    )
