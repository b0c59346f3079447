"""What drawing ahead of the trainer gains: steps an hour with max_staleness 1 against 0.

    python -m benchmarks.staleness                 the run's loop, router and replicas, around work that sleeps
    python -m benchmarks.staleness --vllm          whole runs of the embedded model, two cores

Asleep, drawing a batch and learning from it take `--seconds` each. A replica has as many places as a step has prompts,
so a batch that is drawn ahead waits for the one before it, as it would in an engine that is full.
"""

import argparse
import asyncio
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.gather import Gatherer
from actors.rollout import start_router
from actors.rollout_replica import CONTROL, Health
from benchmarks.grpo_figures import GrpoFigures, median
from benchmarks.grpo_task import GrpoTask
from benchmarks.grpo_vs_trl import Side, run_all
from benchmarks.rl_overheads import Instant, fake_loop
from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path
from raytune.rewards.table import RewardTable
from raytune.stages.interfaces import PolicyResult, PolicySample
from raytune.stages.policy_plan import Cut
from raytune.stages.samples import Completion, Group, Prompt, Sampling, ScoredGroup, VersionSpan

_DEADLINE = 120.0
_TOKENS = 8


class SleepingReplica:
    """A replica without an engine: each of its `places` takes `seconds` for a group, times 1 +- `spread`."""

    def __init__(self, seconds: float, places: int, spread: float) -> None:
        self._seconds, self._spread, self._version = seconds, spread, 0
        self._places = asyncio.Semaphore(places)

    async def generate(self, prompt: Prompt, sampling: Sampling, group_size: int) -> Group:
        async with self._places:
            version = self._version
            rng = np.random.default_rng((sampling.seed, prompt.number))
            await asyncio.sleep(self._seconds * (1.0 + self._spread * float(rng.uniform(-1.0, 1.0))))
        blank = np.zeros(_TOKENS, np.float32)
        span = VersionSpan(version, 0, _TOKENS)
        answer = Completion(blank.astype(np.int32), blank, np.ones(_TOKENS, np.bool_), (span,), "stop")
        return Group(prompt, (answer,) * group_size, sampling, self._seconds)

    @ray.method(concurrency_group=CONTROL)
    async def build(self) -> Health:
        return Health(self._version, False, False, 0)

    @ray.method(concurrency_group=CONTROL)
    async def health(self) -> Health:
        return Health(self._version, False, False, 0)

    @ray.method(concurrency_group=CONTROL)
    async def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group=CONTROL)
    async def take(self, version: int) -> None:
        self._version = version


class RandomScores:
    """Implements the Scorer of a Gatherer with an actor that answers at once."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Scores).remote()

    def submit(self, group: Any) -> Any:
        return self._actor.score.remote(group)


class _Scores:
    def score(self, group: Group) -> ScoredGroup:
        rng = np.random.default_rng(group.prompt.number)
        rewards = tuple(float(value) for value in rng.random(len(group.completions)))
        return ScoredGroup(
            group.prompt.number,
            group.prompt.row,
            RewardTable(("random",), (1.0,), (rewards,)),
            rewards,
            tuple(len(answer.ids) for answer in group.completions),
            len(group.prompt.ids),
            tuple(answer.oldest for answer in group.completions),
            tuple(answer.finish for answer in group.completions),
            payload=None,
            rollout_seconds=group.seconds,
            reward_seconds=0.0,
        )


class SleepingPolicy(Instant):
    """A policy and its weight sync: learning sleeps, publishing tells the replica a number."""

    def __init__(self, replica: Any, seconds: float) -> None:
        super().__init__(Cut(num_ranks=2, max_tokens=16384), answers=1)
        self._replica, self._seconds = replica, seconds

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        time.sleep(self._seconds)
        return super().update(step, samples)

    def publish(self, version: int) -> Mapping[str, float]:
        ray.get(self._replica.take.remote(version), timeout=_DEADLINE)
        return {}


def asleep(*, staleness: int, seconds: float, spread: float, steps: int, prompts: int, answers: int) -> float:
    """Seconds of a step of a run that sleeps, without the first one, which fills the pipeline."""
    kind: Any = ray.remote(concurrency_groups={CONTROL: 4})(SleepingReplica)  # type: ignore[call-overload]
    replica = kind.options(num_cpus=0, max_concurrency=1000).remote(seconds, prompts, spread)
    router = start_router([replica])
    ray.get(router.start.remote(_DEADLINE), timeout=_DEADLINE)
    policy, ends = SleepingPolicy(replica, seconds), []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loop = fake_loop(
            Path(folder),
            rollouts=Gatherer(router, RandomScores()),
            policy=policy,
            steps=steps,
            prompts=prompts,
            answers=answers,
            staleness=staleness,
            after=lambda: ends.append(time.perf_counter()),
        )
        loop.run()
    for actor in (router, replica):
        ray.kill(actor)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def report_asleep(options: argparse.Namespace) -> str:
    """The runs in turn, and a line for each spread of the replica's times."""
    lines = ["| drawing | max_staleness 0, s/step | 1, s/step | gain |", "|---|---|---|---|"]
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        for spread in options.spread:
            found: dict[int, list[float]] = {0: [], 1: []}
            for _ in range(options.repeats):
                for staleness, seconds in found.items():
                    seconds.append(
                        asleep(
                            staleness=staleness,
                            seconds=options.seconds,
                            spread=spread,
                            steps=options.steps,
                            prompts=options.prompts,
                            answers=options.answers,
                        )
                    )
            zero, one = statistics.median(found[0]), statistics.median(found[1])
            name = f"{options.seconds:g} s +- {100 * spread:.0f} % a group, learning {options.seconds:g} s"
            lines.append(f"| {name} | {zero:.3f} | {one:.3f} | {zero / one:.2f} |")
    finally:
        ray.shutdown()
    return "\n".join(lines)


_ONE_CORE_EACH = ("num_workers=1", "cpus_per_worker=1", "rollout_cpus=1", "per_device_train_batch_size=8")
_IN_TURN = ("num_workers=2", "cpus_per_worker=1", "rollout_cpus=2", "per_device_train_batch_size=8")
_WHOLE = {
    "max_staleness 0, one core each": Side("raytune", (*_ONE_CORE_EACH, "max_staleness=0")),
    "max_staleness 1, one core each": Side("raytune", (*_ONE_CORE_EACH, "max_staleness=1")),
    "max_staleness 0, both cores in turn": Side("raytune", (*_IN_TURN, "max_staleness=0")),
}


def report_vllm(options: argparse.Namespace) -> str:
    """Whole runs in turn, by `raytune train`."""
    folder = Path(tempfile.mkdtemp(prefix="staleness-benchmark-"))
    task = GrpoTask(
        folder=folder, model=resolve_model_path(EMBEDDED_NAME), steps=options.steps, warmup=2, prompts=options.prompts,
        answers=options.answers, tokens=options.tokens, method=options.method, bf16=True, learning_rate=1e-6, seed=42,
    )  # fmt: skip
    sides = {name: replace(side, extra=(*side.extra, *options.ours)) for name, side in _WHOLE.items()}
    python = Path(sys.executable)
    runs = run_all(
        list(sides.values()), task, python, data=options.data, repeats=options.repeats, minutes=options.minutes
    )
    lines = ["| run | s/step | waiting for answers, s | learning, s | gain |", "|---|---|---|---|---|"]
    first: GrpoFigures | None = None
    for name, side in sides.items():
        if not runs[side]:
            lines.append(f"| {name} | fails | | | |")
            continue
        figures = median(runs[side])
        first = first or figures
        gain = first.step / figures.step
        lines.append(f"| {name} | {figures.step:.2f} | {figures.rollout:.2f} | {figures.train:.2f} | {gain:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--vllm", action="store_true", help="whole runs instead of work that sleeps")
    add("--seconds", type=float, default=1.0, help="of drawing and of learning, asleep")
    add("--spread", type=float, nargs="*", default=[0.0, 0.5], help="of the times of groups, asleep")
    add("--steps", type=int, default=10)
    add("--repeats", type=int, default=1)
    add("--prompts", type=int, default=4, help="of a step")
    add("--answers", type=int, default=8, help="to a prompt")
    add("--tokens", type=int, default=64, help="of an answer at most, with --vllm")
    add("--method", default="full", choices=("full", "lora"), help="with --vllm")
    add("--data", type=Path, default=Path("../shared/data"), help="folder of alpaca_en_demo.json, with --vllm")
    add("--minutes", type=float, default=30, help="deadline of one run, with --vllm")
    add("--ours", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides, with --vllm")
    options = parser.parse_args()
    print(report_vllm(options) if options.vllm else report_asleep(options))


if __name__ == "__main__":
    main()
