"""How the policy does on held-out prompts: mean reward, pass@k, lengths."""

import math
import time
from collections.abc import Sequence

from raytune.errors import RolloutError
from raytune.rewards.pass_at_k import mean_pass_at_k, powers_up_to
from raytune.stages.interfaces import Rollouts
from raytune.stages.prompts import HELD_OUT
from raytune.stages.samples import Prompt, Sampling, ScoredGroup

RIGHT = 0.5
"""The least reward of an answer that pass@k counts as right."""


def validate(
    rollouts: Rollouts, prompts: Sequence[Prompt], sampling: Sampling, group_size: int, *, timeout: float
) -> tuple[dict[str, float], list[ScoredGroup]]:
    """Answer the held-out prompts with the weights that the rollouts have now.

    Args: prompts: of raytune.stages.prompts.held_out_prompts. timeout: seconds for all of them.
    Returns: the numbers, and groups of training prompts that were finished meanwhile: they are the caller's.
    Errors: RolloutError when the answers do not come in time.
    """
    deadline = time.monotonic() + timeout
    rollouts.submit(prompts, sampling, group_size)
    wanted = {prompt.number for prompt in prompts}
    found: list[ScoredGroup] = []
    others: list[ScoredGroup] = []
    while len(found) < len(wanted):
        left = deadline - time.monotonic()
        if left <= 0:
            raise RolloutError(f"{len(found)} of {len(wanted)} held-out prompts were answered within {timeout:g} s")
        for group in rollouts.wait(left):
            (found if group.number >= HELD_OUT and group.number in wanted else others).append(group)
    return describe_validation(found), others


def describe_validation(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Numbers of held-out groups for the log; NaN where nothing could be scored. Each begins with eval_."""
    rewards = [reward for group in groups for reward in group.rewards]
    known = [reward for reward in rewards if not math.isnan(reward)]
    lengths = [length for group in groups for length in group.lengths]
    answers = max(len(group.rewards) for group in groups)
    scores = [group.rewards for group in groups]
    return {
        "eval_reward": math.fsum(known) / len(known) if known else math.nan,
        **{f"eval_pass@{k}": mean_pass_at_k(scores, k, right=RIGHT) for k in powers_up_to(answers)},
        "eval_completion_length": sum(lengths) / len(lengths),
        "eval_unscorable": float(len(rewards) - len(known)),
    }
