"""What the driver of a reinforcement learning run does itself, without models, actors or waiting.

    python -m benchmarks.rl_overheads

`loop`: ReinforceLoop over fakes that answer at once: drawing prompts, gathering, advantages, planning the update,
the log. `plan`: a rollout batch cut into mini-batches, ranks and micro-batches. Processor time, medians of rounds.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from raytune.config.output import OutputConfig
from raytune.data.store import Manifest, RowStore, to_table, write_block, write_manifest
from raytune.engine.checkpoint import CheckpointStore
from raytune.losses.estimate import EstimatorRule
from raytune.monitors.build import build_monitors
from raytune.rewards.table import RewardTable
from raytune.stages.experience import group_experience
from raytune.stages.interfaces import PolicyResult, PolicySample, Rollouts, TokenNumbers
from raytune.stages.policy_plan import Cut, plan_update
from raytune.stages.prompts import PromptSource
from raytune.stages.recovery import Recovery
from raytune.stages.reinforce import ReinforceLoop, ReinforcePlan
from raytune.stages.samples import Prompt, Sampling, ScoredGroup
from raytune.stages.state import TrainState
from raytune.types import Encoded

_RULE = EstimatorRule("group")
_ROWS = 1000
_METRICS = {"entropy": 1.5, "ratio": 1.0, "clip_share": 0.01, "mismatch_abs": 0.01, "mismatch_k3": 1e-4}


class Instant:
    """Rollouts, policy and weight sync that take no time; the policy plans as the real one does."""

    def __init__(self, cut: Cut, *, answers: int, seed: int = 0) -> None:
        self._cut, self._answers, self._rng = cut, answers, np.random.default_rng(seed)
        self._queue: deque[tuple[Prompt, int]] = deque()
        self._version = 0

    def submit(self, prompts: Sequence[Prompt], sampling: Sampling, group_size: int) -> None:
        self._queue += [(prompt, self._version) for prompt in prompts]

    def wait(self, timeout: float) -> list[ScoredGroup]:
        prompt, version = self._queue.popleft()
        return [scored(prompt, version, self._rng, self._answers)]

    def pending(self) -> int:
        return len(self._queue)

    def publish(self, version: int) -> Mapping[str, float]:
        self._version = version
        return {"transfer": 0.0}

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        plan_update(samples, self._cut, seed=(42, step))
        return PolicyResult(0.5, sum(sample.length for sample in samples), 0.3, 1e-6, _METRICS)

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        raise AssertionError("advantages within groups need no numbers of tokens")

    def save(self, folder: Path, *, with_state: bool) -> None: ...


def scored(prompt: Prompt, version: int, rng: np.random.Generator, answers: int) -> ScoredGroup:
    """A group with random rewards and lengths."""
    rewards = tuple(float(value) for value in rng.random(answers))
    return ScoredGroup(
        prompt.number,
        prompt.row,
        RewardTable(("right",), (1.0,), (rewards,)),
        rewards,
        tuple(int(length) for length in rng.integers(64, 1024, answers)),
        len(prompt.ids),
        (version,) * answers,
        ("stop",) * answers,
        payload=prompt.number,
        rollout_seconds=2.0,
        reward_seconds=0.1,
    )


def fake_loop(
    folder: Path,
    *,
    rollouts: Rollouts,
    policy: Instant,
    steps: int,
    prompts: int,
    answers: int,
    staleness: int,
    after: Callable[[], None] = lambda: None,
) -> ReinforceLoop:
    """A run's loop over a thousand prompts, its log in `folder`; `policy` is its weight sync too.

    Args: prompts: groups of a step. answers: of a group. after: called after each step.
    """
    output, out = OutputConfig(save_strategy="no", report_to=(), disable_tqdm=True, logging_steps=1), folder / "out"
    out.mkdir(exist_ok=True)

    def interrupted() -> bool:
        after()
        return False

    return ReinforceLoop(
        ReinforcePlan(steps, prompts, answers, _ROWS, Sampling(), max_staleness=staleness),
        output,
        source=PromptSource(_store(folder / "rows"), seed=1),
        rollouts=rollouts,
        policy=policy,
        weights=policy,
        experience=lambda found: group_experience(found, _RULE),
        keeps=lambda group: True,
        transcribe=lambda step, found: None,
        monitor=build_monitors(output, out, history=[], total_steps=steps, done=0),
        checkpoints=CheckpointStore(out),
        state=TrainState(),
        interrupted=interrupted,
        recovery=Recovery(lambda checkpoint: None),
    )


def loop_seconds(folder: Path, *, groups: int, prompts: int, answers: int, staleness: int) -> float:
    """Processor seconds of the driver for each group. Args: prompts: groups of a step."""
    world = Instant(Cut(num_ranks=8, max_tokens=16384), answers=answers)
    sizes = {"steps": groups // prompts, "prompts": prompts, "answers": answers, "staleness": staleness}
    # The console is part of the work, but nobody wants to read it here.
    with contextlib.redirect_stderr(io.StringIO()):
        loop = fake_loop(folder, rollouts=world, policy=world, **sizes)
        started = time.process_time()
        loop.run()
        took = time.process_time() - started
    loop.monitor.finish()
    return took / (sizes["steps"] * prompts)


def plan_seconds(*, samples: int, answers: int, cut: Cut) -> float:
    """Processor seconds for one plan of a rollout batch."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(64, 2048, samples).tolist()
    batch = [PolicySample(number // answers, number % answers, lengths[number], 0.5) for number in range(samples)]
    started = time.process_time()
    plan_update(batch, cut, seed=(42, 1))
    return time.process_time() - started


def _store(folder: Path) -> RowStore:
    if not folder.exists():
        folder.mkdir()
        rows = [Encoded(list(range(1, 129)), [-100] * 128) for _ in range(_ROWS)]
        write_manifest(folder, Manifest("key", (write_block(folder, 0, to_table(rows)),)))
    return RowStore.open(folder)


def median_of(rounds: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000, help="of the batch that is cut up")
    parser.add_argument("--answers", type=int, default=8, help="of a group")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = ["| what | processor time |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for prompts, staleness in ((8, 0), (8, 1), (128, 0)):
            sizes = {"groups": options.groups, "prompts": prompts, "answers": options.answers, "staleness": staleness}
            took = median_of(options.rounds, lambda sizes=sizes: loop_seconds(Path(folder), **sizes))
            name = f"loop: {prompts} groups of {options.answers} a step, max_staleness {staleness}, a group"
            lines.append(f"| {name} | {1000 * took:.2f} ms |")
    cuts = {
        "8 ranks, joined": Cut(num_ranks=8, max_tokens=16384),
        "8 ranks, joined, 4 mini-batches, 4 epochs": Cut(num_ranks=8, minibatches=4, epochs=4, max_tokens=16384),
        "8 ranks, padded": Cut(num_ranks=8, max_tokens=16384, joined=False),
        "64 ranks, joined": Cut(num_ranks=64, max_tokens=16384),
        "1 rank, joined": Cut(max_tokens=16384),
    }
    for label, cut in cuts.items():
        took = median_of(
            options.rounds, lambda cut=cut: plan_seconds(samples=options.samples, answers=options.answers, cut=cut)
        )
        lines.append(f"| plan: {options.samples:,} answers, {label} | {1000 * took:.1f} ms |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
