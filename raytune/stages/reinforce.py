"""The loop of ppo and grpo: draw, score, compare, learn, publish. Synchronous is asynchronous with staleness 0.

prompts -> rollouts (with rewards behind them) -> experience -> policy update -> new weights for the rollouts -> ...
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from raytune.config.output import OutputConfig
from raytune.engine.checkpoint import CheckpointStore, write_json
from raytune.errors import PolicyLostError
from raytune.log import get_logger
from raytune.monitors.base import Entry, Monitor
from raytune.stages.experience import Experience
from raytune.stages.failures import nothing_scored
from raytune.stages.group_numbers import describe
from raytune.stages.interfaces import Policy, PolicyResult, Rollouts, WeightSync
from raytune.stages.prompts import PromptCursor, PromptSource
from raytune.stages.recovery import Ages, Losses, Recovery, resume_point
from raytune.stages.samples import Sampling, ScoredGroup
from raytune.stages.state import TrainState, load_state, rate
from raytune.stages.validation import Validation, is_due

log = get_logger(__name__)

ALGORITHM = "algorithm.json"


@dataclass(frozen=True, slots=True)
class ReinforcePlan:
    """Sizes that the loop needs.

    Args: prompts_per_step: groups that one update learns from. max_staleness: versions that the oldest token of an
    answer may be behind the weights that learn from it. max_rounds: prompts that filtering may draw for one step, as
    a multiple of the batch. timeout: seconds without a finished group after which the run stops. algorithm: its numbers
    by name, for people who look into a checkpoint.

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
    algorithm: Mapping[str, Any] = field(default_factory=dict)


class ReinforceLoop:
    """One run, from wherever `state` stands to its end.

    Args: experience: what is learned from the groups of a step. keeps: False for a group that is replaced by another
    one (dynamic sampling). transcribe: is shown the groups of each step. interrupted: asked after each step; True
    saves and returns early. recovery: how lost ranks are replaced. phase: what watches each part of a step.
    validation: of held-out prompts; None where there are none.
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
        validation: Validation | None = None,
    ) -> None:
        self.plan, self.output = plan, output
        self.source, self.rollouts, self.policy, self.weights = source, rollouts, policy, weights
        self.experience, self.keeps, self.transcribe = experience, keeps, transcribe
        self.monitor, self.checkpoints, self.state, self.interrupted = monitor, checkpoints, state, interrupted
        self.recovery, self.phase, self.validation = recovery, phase, validation
        state.total_steps = plan.total_steps
        self._ages, self._losses = Ages(plan.max_staleness), Losses(recovery.most)
        self._published = state.step  # the last step whose weights all replicas have got
        self._taken: list[ScoredGroup] = []  # what the running step learns from, until the next one takes its own
        self._taken_at = state.step  # what was published when they were taken
        self._early: list[ScoredGroup] = []  # finished while held-out prompts were answered
        self._ready: list[ScoredGroup] = []  # scored and waiting for an update that learns from them
        self._drawn: set[int] = set()  # numbers of prompts that were submitted and not learned from yet
        self._dropped: Counter[str] = Counter()
        self._saved = state.step

    def run(self) -> bool:
        """Train to the end. Returns False when it was interrupted (everything is saved then).

        Raises: TrainError when trainer ranks are lost again and again, or no answer of a step could be scored.
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
            nothing = TrainState(total_steps=self.plan.total_steps, data_key=self.state.data_key)
            self._go_back(load_state(back) if back else nothing)
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
        if self._keeps_best():
            self.state.forget_absent(self.checkpoints)
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
            missed = "" if self._is_validated() else "making up for its last validation and "
            log.info("the run is complete at step %s; %swriting its result", self.state.step, missed)
            if not missed:
                return True
        self._publish(self.state.step)
        if self.validation is not None and self.validation.cfg.eval_on_start and self.state.step == 0:
            self._validate(self.validation)
        while self.state.step < self.plan.total_steps and not self._stops_early() and self._step():
            if self.interrupted():
                self._save()
                return False
        if self.output.save_strategy != "no":
            self._save()
        if self.validation is not None and not self._is_validated():
            self._validate(self.validation)
        return True

    def _is_validated(self) -> bool:
        """Whether the log has a validation of this step, or none is wanted."""
        state = self.state
        return self.validation is None or any(
            "eval_runtime" in entry and entry["current_steps"] == state.step for entry in reversed(state.log_history)
        )

    def _step(self) -> bool:
        """One rollout batch; False when no prompt is left to fill it."""
        begun, epoch = time.monotonic(), int(self.source.epoch)
        groups = self._gather()
        if not groups:
            log.info("the prompts are used up after %s steps", self.state.step)
            return False
        waited = time.monotonic() - begun
        with self.phase("experience"):
            experience = self.experience(groups)
            if not experience.samples:
                raise nothing_scored(self.state.step + 1, groups)
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
        ended = int(self.source.epoch) > epoch
        if self._is_due(self.output.logging_strategy, self.output.logging_steps, ended):
            self._log(groups, experience, result, seconds, times)
        validated = self._validate_if_due(ended)
        # The best model can only be loaded back if the step of every validation was saved.
        wanted = validated and self._keeps_best()
        if wanted or self._is_due(self.output.save_strategy, self.output.save_steps, ended):
            self._save()
        return True

    def _is_due(self, strategy: str, every: float, epoch_ended: bool) -> bool:
        return is_due(strategy, every, self.state.step, self.plan.total_steps, epoch_ended=epoch_ended)

    def _validate_if_due(self, epoch_ended: bool) -> bool:
        validation = self.validation
        if validation is None or not self._is_due(validation.cfg.eval_strategy, validation.every, epoch_ended):
            return False
        self._validate(validation)
        return True

    def _validate(self, validation: Validation) -> None:
        numbers, early = validation.run(self.state)
        self._early += early
        self._record(numbers)

    def _stops_early(self) -> bool:
        return self.validation is not None and self.validation.stops_early(self.state)

    def _keeps_best(self) -> bool:
        return self.validation is not None and self.validation.cfg.load_best_model_at_end

    def _gather(self) -> list[ScoredGroup]:
        """The groups of the next update: as many as a step takes, or what is left at the end of the prompts."""
        wanted = self.plan.prompts_per_step
        limit = self.plan.max_rounds * wanted
        seen = 0
        while True:
            # Before more are asked for: what is too old gives its prompts back, to be asked for at once.
            self._ready = [group for group in self._ready if self._fits(group)]
            self._submit()
            if len(self._ready) >= wanted or not (self._early or self.rollouts.pending()):
                break
            for group in map(self._ages.dated, self._finished()):
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

    def _finished(self) -> list[ScoredGroup]:
        """Groups that were not looked at yet, at least one."""
        if self._early:
            found, self._early = self._early, []
            return found
        return self.rollouts.wait(self.plan.timeout)

    def _submit(self) -> None:
        """Draw prompts for the running step and as many further ones as staleness allows."""
        ahead = min(self.plan.max_staleness + 1, self.plan.total_steps - self.state.step)
        room = ahead * self.plan.prompts_per_step - len(self._drawn)
        prompts = self.source.draw(room) if room > 0 else []
        if prompts:
            self.rollouts.submit(prompts, self.plan.sampling, self.plan.group_size)
            # Only now: ranks may be lost in the turn that submitting waits for, and nobody draws these then.
            self._drawn |= {prompt.number for prompt in prompts}

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
        numbers: Entry = {
            "loss": result.loss,
            **describe(groups, version=self.state.step - 1),
            **result.metrics,
            **experience.numbers(),
            "clip_fraction": sum(result.metrics.get(name, 0.0) for name in ("clip_low", "clip_high", "clip_dual")),
            "grad_norm": result.grad_norm,
            "lr": result.learning_rate,
            **{f"groups_{why}": self._dropped[why] for why in ("filtered", "too_old")},
            "time_step": round(sum(seconds.values()), 4),
            **{f"time_{part}": round(took, 4) for part, took in seconds.items()},
            **{f"time_sync_{part}": round(took, 4) for part, took in sync.items()},
            "tokens_per_second": rate(result.num_tokens, sum(seconds.values())),
            "rollout_tokens_per_second": rate(sum(sum(group.lengths) for group in groups), seconds["rollout"]),
        }
        self._dropped.clear()
        self._record(numbers)

    def _record(self, numbers: Entry) -> None:
        self.monitor.log(self.state.step, self.state.record(numbers, epoch=self.source.epoch))

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
        write_json(folder / ALGORITHM, self.plan.algorithm)
        # What is under way is drawn again by a run that goes on from here: answers are not kept, prompts are.
        cursor = self.source.cursor
        self.state.prompts = (cursor.next, tuple(sorted({*cursor.again, *self._drawn})))
        self.state.save(folder)
        self.checkpoints.commit(step)
        self.checkpoints.prune(self.output.save_total_limit, keep=self.state.best_step if self._keeps_best() else None)
