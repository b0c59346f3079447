"""From the logs of two GRPO runs to the figures that are compared, and their table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from benchmarks.figures import GIB
from benchmarks.watch import RunError, Watched

Entry = Mapping[str, float]
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class GrpoFigures:
    """One run. All but `first_step` and the memory are of the steps after the warm-up.

    Args: step: seconds from one line of the log to the next. rollout, train: seconds that the program itself notes for
    them; rest: those of a step that are neither. answer_tokens: tokens of an answer. cut: share of answers that reached
    the limit. gap: mean |log-prob of the trainer - of the engine|, NaN where the program does not tell. cpu: seconds of
    all processes in a step. first_step: seconds from the command to the first line. Memory in bytes.
    """

    step: float
    rollout: float
    train: float
    rest: float
    answer_tokens: float
    cut: float
    reward: float
    first_reward: float
    gap: float
    cpu: float
    first_step: float
    peak_tree: float
    peak_process: float

    @property
    def steps_per_hour(self) -> float:
        return 3600.0 / self.step

    @property
    def pace(self) -> float:
        """Tokens a second of one answer of a step's, drawn and learned from."""
        return self.answer_tokens / self.step


def reduce(watched: Watched, entries: Sequence[Entry], *, steps: int, warmup: int) -> GrpoFigures:
    """Figures of one run.

    Args: entries: the lines of its log. warmup: steps, at least 1, after which the clock starts.
    """
    seen = watched.steps
    if [step.number for step in seen] != list(range(1, steps + 1)):
        raise RunError(f"steps 1 to {steps} should have been logged, found {[step.number for step in seen]}")
    begin, end, count = seen[warmup - 1], seen[-1], steps - warmup
    late = [entry for entry in entries if warmup < entry["current_steps"] <= steps]
    step, rollout, train = (end.seconds - begin.seconds) / count, _mean(late, "time_rollout"), _mean(late, "time_train")
    return GrpoFigures(
        step=step,
        rollout=rollout,
        train=train,
        rest=step - rollout - train,
        answer_tokens=_mean(late, "completion_length"),
        cut=_mean(late, "cut_share"),
        reward=_mean(late, "reward"),
        first_reward=entries[0]["reward"],
        gap=_mean(late, "mismatch_abs"),
        cpu=(end.cpu_seconds - begin.cpu_seconds) / count,
        first_step=seen[0].seconds,
        peak_tree=watched.peak_tree,
        peak_process=watched.peak_process,
    )


def median(runs: Sequence[GrpoFigures]) -> GrpoFigures:
    """The median of each figure by itself."""
    columns = {field.name: [asdict(run)[field.name] for run in runs] for field in fields(GrpoFigures)}
    return GrpoFigures(**{name: statistics.median(values) for name, values in columns.items()})


def comparison(name: str, our_runs: Sequence[GrpoFigures], their_runs: Sequence[GrpoFigures], *, answers: int) -> str:
    """Markdown: one line a figure, both programs and the ratio between them, and the ratios of each pair of runs.

    Args: our_runs, their_runs: in turn; a turn that only one of them ended is left out. answers: of a step.
    """
    pairs = list(zip(our_runs, their_runs, strict=False))
    ours, theirs = (median(runs) for runs in zip(*pairs, strict=True))
    rows = [
        ("seconds a step", ours.step, theirs.step, "{:.2f}"),
        ("steps an hour", ours.steps_per_hour, theirs.steps_per_hour, "{:.0f}"),
        ("rollout seconds a step", ours.rollout, theirs.rollout, "{:.2f}"),
        ("training seconds a step", ours.train, theirs.train, "{:.2f}"),
        ("rest of a step (rewards, weight sync, log), seconds", ours.rest, theirs.rest, "{:.2f}"),
        ("CPU seconds a step", ours.cpu, theirs.cpu, "{:.1f}"),
        ("tokens of an answer, mean", ours.answer_tokens, theirs.answer_tokens, "{:.1f}"),
        ("answer tokens a step", answers * ours.answer_tokens, answers * theirs.answer_tokens, "{:.0f}"),
        ("answer tokens a second", answers * ours.pace, answers * theirs.pace, "{:.1f}"),
        ("answers cut at the limit", ours.cut, theirs.cut, "{:.2f}"),
        ("reward of the first step", ours.first_reward, theirs.first_reward, "{:.3f}"),
        ("reward, mean", ours.reward, theirs.reward, "{:.3f}"),
        ("log-prob gap, mean", ours.gap, theirs.gap, "{:.1e}"),
        ("seconds from command to first step", ours.first_step, theirs.first_step, "{:.1f}"),
        ("peak memory, all processes (GiB)", ours.peak_tree / GIB, theirs.peak_tree / GIB, "{:.2f}"),
        ("peak memory, largest process (GiB)", ours.peak_process / GIB, theirs.peak_process / GIB, "{:.2f}"),
    ]
    head = [f"| {name} (medians) | raytune | TRL | raytune / TRL |", "|---|---|---|---|"]
    each = ", ".join(f"{their_run.step / our_run.step:.2f}" for our_run, their_run in pairs)
    lines = [_line(label, mine, other, form) for label, mine, other, form in rows]
    return "\n".join([*head, *lines, "", f"Steps an hour, pair by pair: {each} times as many."])


SETTINGS_HEAD = (
    "| settings | s/step | rollout s | train s | CPU s a step | tokens an answer | peak memory (GiB) |\n"
    "|---|---|---|---|---|---|---|"
)


def settings_line(label: str, run: GrpoFigures) -> str:
    """One line of a table of runs or settings."""
    return (
        f"| {label} | {run.step:.2f} | {run.rollout:.2f} | {run.train:.2f} | {run.cpu:.1f} "
        f"| {run.answer_tokens:.1f} | {run.peak_tree / GIB:.2f} |"
    )


def _line(label: str, ours: float, theirs: float, form: str) -> str:
    both = [_shown(value, form) for value in (ours, theirs)]
    ratio = "" if "" in both or not theirs else f"{ours / theirs:.2f}"
    return f"| {label} | {both[0]} | {both[1]} | {ratio} |"


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def _mean(entries: Sequence[Entry], name: str) -> float:
    found = [entry[name] for entry in entries if name in entry]
    return statistics.fmean(found) if found else _NAN
