"""How the policy does on held-out prompts: mean reward, pass@k, lengths; and when a run asks that."""

import math
import time
from collections.abc import Sequence

from raytune.config.evaluation import EvalConfig
from raytune.stages.group_numbers import describe_validation
from raytune.stages.interfaces import Rollouts
from raytune.stages.prompts import HELD_OUT
from raytune.stages.samples import Prompt, Sampling, ScoredGroup
from raytune.stages.state import TrainState


class Validation:
    """What a loop needs to know of its held-out prompts.

    Args: prompts: of raytune.stages.prompts.held_out_prompts, at least one. group_size: answers to each. every: steps
    between two validations, below 1 a share of all. timeout: seconds without a finished group after which it fails.

    Example: Validation(cfg.evaluation, rollouts, held_out_prompts(store), Sampling(), 4, every=10, timeout=600.0)
    """

    def __init__(
        self,
        cfg: EvalConfig,
        rollouts: Rollouts,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        group_size: int,
        *,
        every: float,
        timeout: float,
    ) -> None:
        self.cfg, self.every = cfg, every
        self._rollouts, self._prompts, self._sampling = rollouts, prompts, sampling
        self._group_size, self._timeout = group_size, timeout

    def run(self, state: TrainState) -> tuple[dict[str, float], list[ScoredGroup]]:
        """As `validate`; what `state` knows of the best evaluation is brought up to date."""
        begun = time.monotonic()
        numbers, others = validate(
            self._rollouts, self._prompts, self._sampling, self._group_size, timeout=self._timeout
        )
        metric = f"eval_{(self.cfg.metric_for_best_model or 'reward').removeprefix('eval_')}"
        if state.step:
            greater = self.cfg.greater_is_better
            state.judge(numbers[metric], greater=not metric.endswith("loss") if greater is None else greater)
        return {**numbers, "eval_runtime": round(time.monotonic() - begun, 4)}, others

    def stops_early(self, state: TrainState) -> bool:
        """Whether early_stopping_steps validations were no better than the best."""
        patience = self.cfg.early_stopping_steps
        return patience is not None and state.stale_evals >= patience


def validate(
    rollouts: Rollouts, prompts: Sequence[Prompt], sampling: Sampling, group_size: int, *, timeout: float
) -> tuple[dict[str, float], list[ScoredGroup]]:
    """Answer the held-out prompts with the weights that the rollouts have now.

    Returns: the numbers, and groups of training prompts that were finished meanwhile: they are the caller's.
    Errors: RolloutError when no answer comes within `timeout` seconds.
    """
    rollouts.submit(prompts, sampling, group_size)
    found: list[ScoredGroup] = []
    others: list[ScoredGroup] = []
    while len(found) < len(prompts):
        for group in rollouts.wait(timeout):
            (found if group.number >= HELD_OUT else others).append(group)
    return describe_validation(found), others


def is_due(strategy: str, every: float, step: int, total: int, *, epoch_ended: bool) -> bool:
    """Whether something that happens by `strategy` happens after step `step` of `total`.

    Args: every: steps, below 1 a share of all, as in Hugging Face's Trainer. epoch_ended: the step drew the last
    prompt of an epoch.
    """
    if strategy != "steps":
        return strategy == "epoch" and epoch_ended
    interval = math.ceil(every * total) if every < 1 else int(every)
    return step % max(interval, 1) == 0
