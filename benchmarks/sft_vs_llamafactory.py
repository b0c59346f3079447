"""LoRA SFT on CPU: raytune and LLaMA-Factory on the same rows, in the same order, at the same effective batch.

rows -> one YAML for each -> runs in turn, each in its own process -> rates from when each step was logged -> table

Run from the repository root: python -m benchmarks.sft_vs_llamafactory [--sweep llamafactory]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from benchmarks.alternate import alternate
from benchmarks.figures import SETTINGS_HEAD, Figures, comparison_table, median, reduce, settings_line
from benchmarks.opponent import Opponent
from benchmarks.task import WEIGHTS, Task, Tokens, config_of, count_tokens, write_models, write_rows
from benchmarks.watch import watch


@dataclass(frozen=True, slots=True)
class Side:
    """One program and how it is run. `weights` is the type of the numbers in its model folder.

    `threads` is OMP_NUM_THREADS; None leaves it unset. raytune shares the cores out by itself.
    Example: Side("llamafactory", "bfloat16", 2, ("disable_gradient_checkpointing=true",))
    """

    name: str
    weights: str
    threads: int | None
    extra: tuple[str, ...]

    def label(self) -> str:
        return ", ".join([f"{self.weights} folder", *self.extra, f"{self.threads or 'default'} threads"])


_NO_CHECKPOINTING = "disable_gradient_checkpointing=true"
# The fastest lines of the tables of settings in README.md.
THEIR_BEST = Side("llamafactory", "bfloat16", None, ("bf16=true", _NO_CHECKPOINTING))
OUR_BEST = Side(
    "raytune",
    "bfloat16",
    None,
    ("bf16=true", "num_workers=2", "per_device_train_batch_size=1", "max_tokens_per_batch=1024"),
)

_ONE_ROW = ("per_device_train_batch_size=1", "gradient_accumulation_steps=4")
_FOUR_ROWS = ("per_device_train_batch_size=4", "gradient_accumulation_steps=1")
SETTINGS = {
    "llamafactory": (
        Side("llamafactory", "float32", None, ()),
        Side("llamafactory", "float32", None, (_NO_CHECKPOINTING,)),
        Side("llamafactory", "float32", None, ("bf16=true",)),
        Side("llamafactory", "float32", None, ("bf16=true", _NO_CHECKPOINTING)),
        Side("llamafactory", "bfloat16", None, ()),
        Side("llamafactory", "bfloat16", None, (_NO_CHECKPOINTING,)),
        Side("llamafactory", "bfloat16", None, ("bf16=true",)),
        THEIR_BEST,
        Side("llamafactory", "bfloat16", None, ("pure_bf16=true", _NO_CHECKPOINTING)),
        replace(THEIR_BEST, threads=1),
        Side("llamafactory", "float32", 1, (_NO_CHECKPOINTING,)),
        replace(THEIR_BEST, extra=(*THEIR_BEST.extra, *_ONE_ROW)),
        replace(THEIR_BEST, extra=(*THEIR_BEST.extra, *_FOUR_ROWS)),
        replace(THEIR_BEST, extra=(*THEIR_BEST.extra, "torch_compile=true")),
    ),
    "raytune": (
        Side("raytune", "float32", None, ()),
        Side("raytune", "float32", None, ("bf16=true",)),
        OUR_BEST,
        Side("raytune", "bfloat16", None, ("pure_bf16=true",)),
        replace(OUR_BEST, extra=(*OUR_BEST.extra, *_ONE_ROW)),
        replace(OUR_BEST, extra=(*OUR_BEST.extra, *_FOUR_ROWS)),
    ),
}


def run_side(side: Side, task: Task, opponent: Opponent, tokens: Tokens, minutes: float) -> Figures:
    """Run one program once and reduce what was seen of it to figures."""
    task = replace(task, weights=side.weights)
    output, config = task.folder / side.name, task.folder / f"{side.name}.yaml"
    shutil.rmtree(output, ignore_errors=True)
    config.write_text(yaml.safe_dump(config_of(task, output), sort_keys=False))
    if side.name == "llamafactory":
        command, env = opponent.command, opponent.env(side.threads)
    else:
        command, env = str(Path(sys.executable).with_name("raytune")), dict(os.environ)
    watched = watch(
        [command, "train", str(config), *side.extra],
        log=output / "trainer_log.jsonl",
        output=task.folder / f"{side.name}.log",
        env=env,
        cwd=task.folder,
        deadline=minutes * 60,
    )
    results = json.loads((output / "train_results.json").read_text())
    return reduce(watched, task, tokens, results["train_samples_per_second"])


def run_all(
    sides: Sequence[Side], task: Task, opponent: Opponent, tokens: Tokens, *, repeats: int, minutes: float
) -> dict[Side, list[Figures]]:
    """Every side `repeats` times, in turn. Args: minutes: that a run may take."""
    return alternate(
        sides,
        lambda _, side: run_side(side, task, opponent, tokens, minutes),
        lambda turn, side, done: settings_line(f"run {turn}, {side.name}: {side.label()}", done),
        repeats=repeats,
    )


def report(runs: dict[Side, list[Figures]], *, sweep: bool) -> str:
    """The table of the medians."""
    if sweep:
        lines = [settings_line(side.label(), median(done)) for side, done in runs.items() if done]
        lines += [f"| {side.label()} | fails | | | | |" for side, done in runs.items() if not done]
        return "\n".join([SETTINGS_HEAD, *lines])
    ours, theirs = runs.values()
    if not ours or not theirs:
        sys.exit("one of the two did not run to its end; its output is above")
    named = "\n".join(f"- {side.name}: {side.label()}" for side in runs)
    return f"{named}\n\n{comparison_table(median(ours), median(theirs))}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="raytune against LLaMA-Factory: LoRA SFT on CPU")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cache = caches / "raytune" / "benchmarks" / "llamafactory"
    add = parser.add_argument
    add("--cache", type=Path, default=cache, help="where LLaMA-Factory's venv is kept")
    add("--data", type=Path, default=Path("../shared/data"), help="folder of the demo data sets")
    add("--work", type=Path, help="folder for configs, outputs and results.json; default a temporary one")
    add("--sweep", choices=list(SETTINGS), help="compare the settings of one program with each other instead")
    add("--only", nargs="*", type=int, help="with --sweep: numbers of the settings to run, from 0")
    add("--repeats", type=int, default=3)
    add("--steps", type=int, default=40)
    add("--warmup", type=int, default=5, help="steps left out of the rates")
    add("--cutoff", type=int, default=256, help="cutoff_len")
    add("--micro-batch", type=int, default=2, help="per_device_train_batch_size of both")
    add("--accumulation", type=int, default=2, help="gradient_accumulation_steps of both")
    add("--learning-rate", type=float, default=1e-4)
    add("--seed", type=int, default=42)
    add("--minutes", type=float, default=30, help="deadline of one run")
    add("--our-weights", choices=WEIGHTS, default=OUR_BEST.weights)
    add("--their-weights", choices=WEIGHTS, default=THEIR_BEST.weights)
    add("--their-threads", type=int, default=THEIR_BEST.threads, help="OMP_NUM_THREADS; default none set")
    add("--ours", nargs="*", default=list(OUR_BEST.extra), metavar="KEY=VALUE", help="overrides for raytune")
    add("--theirs", nargs="*", default=list(THEIR_BEST.extra), metavar="KEY=VALUE", help="overrides for LLaMA-Factory")
    return parser.parse_args()


def sides_of(args: argparse.Namespace) -> list[Side]:
    if args.sweep:
        settings = SETTINGS[args.sweep]
        return [settings[number] for number in args.only or range(len(settings))]
    return [
        Side("raytune", args.our_weights, OUR_BEST.threads, tuple(args.ours)),
        Side("llamafactory", args.their_weights, args.their_threads, tuple(args.theirs)),
    ]


def main() -> None:
    args = arguments()
    folder = (args.work or Path(tempfile.mkdtemp(prefix="sft-benchmark-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(
        folder=folder, weights="float32", cutoff_len=args.cutoff, micro_batch=args.micro_batch,
        accumulation=args.accumulation, steps=args.steps, warmup=args.warmup, learning_rate=args.learning_rate,
        seed=args.seed,
    )  # fmt: skip
    opponent = Opponent(args.cache.absolute())
    opponent.install()
    write_models(folder)
    write_rows(args.data, folder / "data", task.steps * task.batch, args.seed)
    tokens = count_tokens(opponent, task)
    runs = run_all(sides_of(args), task, opponent, tokens, repeats=args.repeats, minutes=args.minutes)
    raw = {f"{side.name}: {side.label()}": [asdict(run) for run in done] for side, done in runs.items()}
    (folder / "results.json").write_text(json.dumps(raw, indent=1))
    print(report(runs, sweep=args.sweep is not None))


if __name__ == "__main__":
    main()
