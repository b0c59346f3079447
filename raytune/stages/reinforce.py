"""The loop of ppo and grpo: draw, score, compare, learn, publish. Synchronous is asynchronous with staleness 0.

prompts -> rollouts (with rewards behind them) -> experience -> policy update -> new weights for the rollouts -> ...
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from raytune.config.output import OutputConfig
from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import PolicyLostError
from raytune.log import get_logger
from raytune.monitors.base import Entry, Monitor
from raytune.stages.experience import Experience
from raytune.stages.interfaces import Policy, PolicyResult, Rollouts, WeightSync
from raytune.stages.prompts import PromptCursor, PromptSource
from raytune.stages.recovery import Ages, Losses, Recovery, resume_point
from raytune.stages.samples import Sampling, ScoredGroup
from raytune.stages.state import TrainState, load_state

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReinforcePlan:
    """Sizes that the loop needs.

    Args: prompts_per_step: groups that one update learns from. max_staleness: versions that the oldest token of an
    answer may be behind the weights that learn from it. max_rounds: prompts that filtering may draw for one step, as
    a multiple of the batch. timeout: seconds without a finished group after which the run stops.

    Example: ReinforcePlan(200, prompts_per_step=8, group_size=8, num_rows=1000, sampling=Sampling())
    """

    total_steps: int
    prompts_per_step: int
    group_size: int
    num_rows: int
    sampling: Sampling
    max_staleness: int = 0
    max_rounds: int = 10
    timeout: float = 600.0


class ReinforceLoop:
    """One run, from wherever `state` stands to its end.

    Args: experience: what is learned from the groups of a step. keeps: False for a group that is replaced by another
    one (dynamic sampling). transcribe: is shown the groups of each step. interrupted: asked after each step; True
    saves and returns early. recovery: how lost ranks are replaced. phase: what watches each part of a step.
    """

    def __init__(
        self,
        plan: ReinforcePlan,
        output: OutputConfig,
        *,
        source: PromptSource,
        rollouts: Rollouts,
        policy: Policy,
        weights: WeightSync,
        experience: Callable[[Sequence[ScoredGroup]], Experience],
        keeps: Callable[[ScoredGroup], bool],
        transcribe: Callable[[int, Sequence[ScoredGroup]], None],
        monitor: Monitor,
        checkpoints: CheckpointStore,
        state: TrainState,
        interrupted: Callable[[], bool],
        recovery: Recovery,
        phase: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
    ) -> None:
        self.plan, self.output = plan, output
        self.source, self.rollouts, self.policy, self.weights = source, rollouts, policy, weights
        self.experience, self.keeps, self.transcribe = experience, keeps, transcribe
        self.monitor, self.checkpoints, self.state, self.interrupted = monitor, checkpoints, state, interrupted
        self.recovery, self.phase = recovery, phase
        state.total_steps = plan.total_steps
        self._ages, self._losses = Ages(plan.max_staleness), Losses(recovery.most)
        self._published = state.step  # the last step whose weights all replicas have got
        self._taken: list[ScoredGroup] = []  # what the running step learns from, until the next one takes its own
        self._taken_at = state.step  # what was published when they were taken
        self._ready: list[ScoredGroup] = []  # scored and waiting for an update that learns from them
        self._drawn: set[int] = set()  # numbers of prompts that were submitted and not learned from yet
        self._dropped: Counter[str] = Counter()
        self._saved = state.step

    def run(self) -> bool:
        """Train to the end. Returns False when it was interrupted (everything is saved then).

        Raises: TrainError when trainer ranks are lost again and again.
        """
        while True:
            try:
                return self._run()
            except PolicyLostError as lost:
                self.recover(lost)

    def recover(self, lost: PolicyLostError) -> None:
        """Go back to the last checkpoint, with new ranks; `run` goes on from there. Raises TrainError as `run`."""
        while True:
            self._losses.add(lost, self.state.step)
            back = resume_point(self.checkpoints, self.recovery.start, with_state=not self.output.save_only_model)
            log.warning(
                "%s; new ranks go on from %s (step %s was done; recovery %s of at most %s in a row)",
                lost.what,
                back or "the initial weights: there is no checkpoint yet",
                self.state.step,
                self._losses.count,
                self._losses.most,
            )
            self._go_back(load_state(back) if back else TrainState(total_steps=self.plan.total_steps))
            try:
                with self.phase("recovery"):
                    self.recovery.rebuild(back)
                return
            except PolicyLostError as again:
                lost = again

    def _go_back(self, to: TrainState) -> None:
        """Forget what was done since a checkpoint; prompts are drawn again unless their answers can still be used."""
        cursor = PromptCursor(*to.prompts)
        ready, taken = ({group.number for group in groups} for groups in (self._ready, self._taken))
        under_way = self._drawn - ready
        tried = self._ages.versions.step_of(self._ages.versions.newest)
        ahead = dict.fromkeys(ready, self._published) | dict.fromkeys(taken, self._taken_at)
        self._ages.go_back(ahead | dict.fromkeys(under_way, tried))
        self.state.become(to)
        unlearned = self.source.since(cursor)
        held = [group for group in (*self._ready, *self._taken) if group.number in unlearned]
        self._ready = [group for group in held if self._ages.fits(group, to.step)]
        self._drawn = under_way | {group.number for group in self._ready}
        self.source.go_back(cursor, kept=self._drawn)
        self._taken, self._saved = [], to.step

    def _publish(self, step: int) -> Mapping[str, float]:
        with self.phase("publish"):
            times = self.weights.publish(self._ages.versions.give(step))
        self._published = step
        return times

    def _run(self) -> bool:
        if self.state.step >= self.plan.total_steps:
            log.info("the run is complete at step %s; writing its result", self.state.step)
        else:
            self._publish(self.state.step)
        while self.state.step < self.plan.total_steps and self._step():
            if self.interrupted():
                self._save()
                return False
        if self.output.save_strategy != "no":
            self._save()
        return True

    def _step(self) -> bool:
        """One rollout batch; False when no prompt is left to fill it."""
        begun = time.monotonic()
        groups = self._gather()
        if not groups:
            log.info("the prompts are used up after %s steps", self.state.step)
            return False
        waited = time.monotonic() - begun
        with self.phase("experience"):
            experience = self.experience(groups)
        compared = time.monotonic()
        with self.phase("update"):
            result = self.policy.update(self.state.step + 1, experience.samples)
        learned = time.monotonic()
        times = self._publish(self.state.step + 1)
        self._account(groups, result, time.monotonic() - begun)
        seconds = {
            "rollout": waited,
            "experience": compared - begun - waited,
            "train": learned - compared,
            "sync": time.monotonic() - learned,
        }
        self.transcribe(self.state.step, groups)
        self.monitor.advance(self.state.step)
        self._log(groups, experience, result, seconds, times)
        if _due(self.output.save_strategy, self.output.save_steps, self.state.step, self.plan.total_steps):
            self._save()
        return True

    def _gather(self) -> list[ScoredGroup]:
        """The groups of the next update: as many as a step takes, or what is left at the end of the prompts."""
        wanted = self.plan.prompts_per_step
        limit = self.plan.max_rounds * wanted
        seen = 0
        while True:
            self._submit()
            self._ready = [group for group in self._ready if self._fits(group)]
            if len(self._ready) >= wanted or not self.rollouts.pending():
                break
            with self.phase("rollout"):
                found = self.rollouts.wait(self.plan.timeout)
            for group in map(self._ages.dated, found):
                seen += 1
                if self.keeps(group) or seen > limit:
                    self._ready.append(group)
                else:
                    self._forget(group, "filtered")
        # Without staleness these are the groups of one submission; by number, whatever the order they came in.
        self._ready.sort(key=lambda group: group.number)
        self._taken, self._ready = self._ready[:wanted], self._ready[wanted:]
        self._taken_at = self._published
        self._drawn -= {group.number for group in self._taken}
        return self._taken

    def _submit(self) -> None:
        """Draw prompts for the running step and as many further ones as staleness allows."""
        ahead = min(self.plan.max_staleness + 1, self.plan.total_steps - self.state.step)
        room = ahead * self.plan.prompts_per_step - len(self._drawn)
        prompts = self.source.draw(room) if room > 0 else []
        if prompts:
            self._drawn |= {prompt.number for prompt in prompts}
            self.rollouts.submit(prompts, self.plan.sampling, self.plan.group_size)

    def _fits(self, group: ScoredGroup) -> bool:
        fits = self._ages.fits(group, self.state.step)
        if not fits:
            self._forget(group, "too_old")
            self.source.give_back([group.number])
        return fits

    def _forget(self, group: ScoredGroup, why: str) -> None:
        self._drawn.discard(group.number)
        self._dropped[why] += 1

    def _account(self, groups: Sequence[ScoredGroup], result: PolicyResult, seconds: float) -> None:
        state = self.state
        state.step += 1
        state.num_rows += len(groups)
        state.num_tokens += result.num_tokens
        state.elapsed += seconds
        state.loss_sum += result.loss

    def _log(
        self,
        groups: Sequence[ScoredGroup],
        experience: Experience,
        result: PolicyResult,
        seconds: Mapping[str, float],
        sync: Mapping[str, float],
    ) -> None:
        state = self.state
        if not _due(self.output.logging_strategy, self.output.logging_steps, state.step, self.plan.total_steps):
            return
        entry: Entry = {
            "current_steps": state.step,
            "total_steps": self.plan.total_steps,
            "loss": result.loss,
            **describe(groups, version=state.step - 1),
            **({} if experience.kl is None else {"kl": experience.kl}),
            **result.metrics,
            "grad_norm": result.grad_norm,
            "lr": result.learning_rate,
            **{f"groups_{why}": count for why, count in sorted(self._dropped.items())},
            **{f"time_{part}": round(took, 4) for part, took in seconds.items()},
            **{f"time_sync_{part}": round(took, 4) for part, took in sync.items()},
            "epoch": round(self.source.epoch, 4),
            "percentage": round(100 * state.step / self.plan.total_steps, 2),
            "elapsed_time": round(state.elapsed, 2),
            "remaining_time": round(state.elapsed / state.step * (self.plan.total_steps - state.step), 2),
            "throughput": round(state.num_tokens / state.elapsed, 2) if state.elapsed else 0.0,
            "total_tokens": state.num_tokens,
        }
        self._dropped.clear()
        state.log_history.append(entry)
        self.monitor.log(state.step, entry)

    def _save(self) -> None:
        step = self.state.step
        if step == self._saved:
            return
        with self.phase("save"):
            self._write(step)
        self._saved = step

    def _write(self, step: int) -> None:
        folder = self.checkpoints.stage(step)
        self.policy.save(folder, with_state=not self.output.save_only_model)
        # What is under way is drawn again by a run that goes on from here: answers are not kept, prompts are.
        cursor = self.source.cursor
        self.state.prompts = (cursor.next, tuple(sorted({*cursor.again, *self._drawn})))
        self.state.save(folder)
        self.checkpoints.commit(step)
        self.checkpoints.prune(self.output.save_total_limit, keep=None)


def describe(groups: Sequence[ScoredGroup], *, version: int) -> dict[str, float]:
    """Numbers of the answers of one step that need no model.

    Args: version: of the weights that are about to learn from them.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    known = [reward for reward in rewards if not math.isnan(reward)]
    lengths = [length for group in groups for length in group.lengths]
    oldest = [version - old for group in groups for old in group.oldest]
    cut = sum(finish == "length" for group in groups for finish in group.finishes)
    mean = math.fsum(known) / len(known) if known else math.nan
    numbers = {
        "reward": mean,
        "reward_std": math.sqrt(math.fsum((reward - mean) ** 2 for reward in known) / len(known)) if known else 0.0,
        "completion_length": sum(lengths) / len(lengths),
        "completion_length_max": float(max(lengths)),
        "cut_share": cut / len(lengths),
        "unscorable": float(len(rewards) - len(known)),
        "staleness": sum(oldest) / len(oldest),
        "groups_alike": float(sum(len(set(group.rewards)) == 1 for group in groups)),
        "seconds_of_a_group": sum(group.rollout_seconds for group in groups) / len(groups),
        "seconds_of_a_reward": sum(group.reward_seconds for group in groups) / len(groups),
    }
    parts = {name: [group.table.means[name] for group in groups] for name in groups[0].table.names}
    return numbers | {f"reward_{name}": _mean(values) for name, values in parts.items()}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _due(strategy: str, every: float, step: int, total: int) -> bool:
    if strategy == "no":
        return False
    interval = math.ceil(every * total) if every < 1 else int(every)
    return step % max(interval, 1) == 0
