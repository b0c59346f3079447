"""GRPO on CPU: raytune and TRL's GRPOTrainer on the same prompts, with the same reward and the same updates.

prompts -> a config for each -> runs in turn, each a process -> seconds from line to line of their logs -> table

Run from the repository root: python -m benchmarks.grpo_vs_trl --steps 8 --repeats 3 [--method full,lora] [--type fp32]
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
from benchmarks.grpo_figures import SETTINGS_HEAD, GrpoFigures, comparison, median, reduce, settings_line
from benchmarks.grpo_task import ROOT, ROWS, GrpoTask, our_config, parsed, their_job, trl_python, write_prompts
from benchmarks.watch import watch
from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path


@dataclass(frozen=True, slots=True)
class Side:
    """One program and how it is run. Example: Side("trl", ("micro_batch=8", "dtype=bfloat16"), threads=2)

    Args: extra: overrides of its keys. threads: OMP_NUM_THREADS; None leaves it unset.
    """

    name: str
    extra: tuple[str, ...]
    threads: int | None = None

    def label(self) -> str:
        return ", ".join([*self.extra, f"{self.threads or 'default'} threads"])


# Ranks and engines of one thread each: at staleness 0 they take turns on the two cores.
_OUR_BEST = (
    "num_workers=2", "cpus_per_worker=1", "num_rollouts=2", "rollout_cpus=1", "per_device_train_batch_size=8",
    "vllm_enforce_eager=false",
)  # fmt: skip
OURS = {"full": Side("raytune", _OUR_BEST), "lora": Side("raytune", _OUR_BEST)}
THEIRS = {
    "full": Side("trl", ("micro_batch=8", "dtype=float32")),
    "lora": Side("trl", ("micro_batch=8", "dtype=bfloat16")),
}
SETTINGS = {
    "trl": tuple(
        Side("trl", extra)
        for extra in (
            ("micro_batch=8", "dtype=float32"),
            ("micro_batch=8", "dtype=bfloat16"),
            ("micro_batch=4", "dtype=bfloat16"),
            ("micro_batch=16", "dtype=bfloat16"),
            ("micro_batch=32", "dtype=bfloat16"),
            ("micro_batch=8", "dtype=bfloat16", "bf16=false"),
            ("micro_batch=8", "dtype=bfloat16", "cache_implementation=static"),
            ("micro_batch=8", "dtype=bfloat16", "use_transformers_continuous_batching=true"),
            ("micro_batch=8", "dtype=bfloat16", "torch_compile=true"),
            ("micro_batch=8", "dtype=bfloat16", "use_vllm=true", "vllm_mode=colocate"),
        )
    ),
    "raytune": tuple(
        Side("raytune", extra)
        for extra in (
            _OUR_BEST,
            (*_OUR_BEST, "vllm_enforce_eager=true"),
            (*_OUR_BEST, "num_workers=1", "cpus_per_worker=2", "num_rollouts=1", "rollout_cpus=2"),
            (*_OUR_BEST, "num_rollouts=1", "rollout_cpus=2"),
            (*_OUR_BEST, "per_device_train_batch_size=16"),
        )
    ),
}


def run_side(side: Side, task: GrpoTask, python: Path, minutes: float) -> GrpoFigures:
    """Run one program once and reduce what was seen of it to figures."""
    output = task.folder / f"{side.name}-{task.method}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    if side.name == "trl":
        job = task.folder / "trl.json"
        job.write_text(json.dumps(their_job(task, output, parsed(side.extra))))
        command = [str(python), str(ROOT / "benchmarks" / "trl_side.py"), str(job)]
    else:
        config = task.folder / "raytune.yaml"
        config.write_text(yaml.safe_dump(our_config(task, output), sort_keys=False))
        command = [str(Path(sys.executable).with_name("raytune")), "train", str(config), *side.extra]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if side.threads is not None:
        env["OMP_NUM_THREADS"] = str(side.threads)
    log = output / "trainer_log.jsonl"
    watched = watch(
        command,
        log=log,
        output=task.folder / f"{side.name}-{task.method}.log",
        env=env,
        cwd=task.folder,
        deadline=minutes * 60,
    )
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return reduce(watched, [entry for entry in entries if "reward" in entry], steps=task.steps, warmup=task.warmup)


def run_all(
    sides: Sequence[Side], task: GrpoTask, python: Path, *, data: Path, repeats: int, minutes: float
) -> dict[Side, list[GrpoFigures]]:
    """Every side `repeats` times, in turn, each turn with prompts and answers of a seed of its own.

    Args: data: folder of alpaca_en_demo.json. minutes: that a run may take.
    """

    def run(turn: int, side: Side) -> GrpoFigures:
        seeded = replace(task, seed=task.seed + turn - 1)
        write_prompts(data, task.folder / "data", task.steps * task.prompts, seeded.seed)
        return run_side(side, seeded, python, minutes)

    return alternate(
        sides,
        run,
        lambda turn, side, done: settings_line(f"run {turn}, {task.label}, {side.name}: {side.label()}", done),
        repeats=repeats,
    )


def report(runs: dict[Side, list[GrpoFigures]], task: GrpoTask, *, sweep: bool) -> str:
    """The table of the medians."""
    if sweep:
        lines = [settings_line(side.label(), median(done)) for side, done in runs.items() if done]
        lines += [f"| {side.label()} | fails | | | | | |" for side, done in runs.items() if not done]
        return "\n".join([f"{task.label}:", "", SETTINGS_HEAD, *lines])
    ours, theirs = runs.values()
    if not ours or not theirs:
        sys.exit("one of the two did not run to its end; its output is above")
    named = "\n".join(f"- {side.name}: {side.label()}" for side in runs)
    table = comparison(task.label, ours, theirs, answers=task.prompts * task.answers)
    return f"{named}\n\n{table}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="raytune against TRL: GRPO on CPU")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    add = parser.add_argument
    add("--cache", type=Path, default=caches / "raytune" / "benchmarks" / "trl", help="where TRL's venv is kept")
    add("--apart", action="store_true", help="TRL in a venv of its own even if this environment has the version")
    add("--data", type=Path, default=Path("../shared/data"), help="folder of alpaca_en_demo.json")
    add("--work", type=Path, help="folder for configs, outputs and results.json; default a temporary one")
    add("--method", default="full,lora", help="full, lora or both")
    add("--type", default="bf16", choices=("bf16", "fp32"), help="of the computations of both")
    add("--sweep", choices=list(SETTINGS), help="compare the settings of one program with each other instead")
    add("--only", nargs="*", type=int, help="with --sweep: numbers of the settings to run, from 0")
    add("--repeats", type=int, default=3)
    add("--steps", type=int, default=8)
    add("--warmup", type=int, default=2, help="steps left out of the rates, at least 1")
    add("--prompts", type=int, default=4, help="of a step")
    add("--answers", type=int, default=8, help="to a prompt")
    add("--tokens", type=int, default=64, help="of an answer at most")
    add("--learning-rate", type=float, default=1e-6)
    add("--seed", type=int, default=42, help="of the first repeat; the others have the next ones")
    add("--minutes", type=float, default=30, help="deadline of one run")
    add("--threads", type=int, help="OMP_NUM_THREADS of both; default none set")
    add("--ours", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides for raytune")
    add("--theirs", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides for TRL")
    return parser.parse_args()


def sides_of(args: argparse.Namespace, method: str) -> list[Side]:
    if args.sweep:
        settings = SETTINGS[args.sweep]
        sides = [settings[number] for number in args.only or range(len(settings))]
    else:
        ours, theirs = OURS[method], THEIRS[method]
        sides = [replace(ours, extra=(*ours.extra, *args.ours)), replace(theirs, extra=(*theirs.extra, *args.theirs))]
    return [replace(side, threads=args.threads) for side in sides]


def main() -> None:
    args = arguments()
    if not (args.data / ROWS).is_file():
        sys.exit(f"{args.data / ROWS} is not there; --data names its folder")
    folder = (args.work or Path(tempfile.mkdtemp(prefix="grpo-benchmark-"))).absolute()
    python = trl_python(args.cache.absolute(), apart=args.apart)
    results = {}
    for method in args.method.split(","):
        task = GrpoTask(
            folder=folder, model=resolve_model_path(EMBEDDED_NAME), steps=args.steps, warmup=args.warmup,
            prompts=args.prompts, answers=args.answers, tokens=args.tokens, method=method, bf16=args.type == "bf16",
            learning_rate=args.learning_rate, seed=args.seed,
        )  # fmt: skip
        sides = sides_of(args, method)
        runs = run_all(sides, task, python, data=args.data, repeats=args.repeats, minutes=args.minutes)
        for side, done in runs.items():
            results[f"{task.label}, {side.name}: {side.label()}"] = [asdict(run) for run in done]
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        print(f"\n{report(runs, task, sweep=args.sweep is not None)}", flush=True)


if __name__ == "__main__":
    main()
