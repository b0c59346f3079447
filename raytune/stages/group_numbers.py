"""What the log says of the groups of a step."""

import math
from collections.abc import Sequence

from raytune.rewards.pass_at_k import mean_pass_at_k, powers_up_to
from raytune.rewards.table import join
from raytune.stages.experience import teaches
from raytune.stages.samples import ScoredGroup

RIGHT = 0.5
"""The least score of an answer that pass@k counts as right."""


def describe(groups: Sequence[ScoredGroup], *, version: int) -> dict[str, float]:
    """Numbers of the answers of one step that need no model.

    Args: version: of the weights that are about to learn from them.
    Returns: among others time_group, the mean seconds in which a replica drew a group, and time_reward, the sum of the
    seconds that reward workers spent on these groups; both pass while the loop waits for answers.
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
        "completion_length_min": float(min(lengths)),
        "completion_length_max": float(max(lengths)),
        "cut_share": cut / len(lengths),
        "unscorable": float(len(rewards) - len(known)),
        "staleness": sum(oldest) / len(oldest),
        "staleness_max": float(max(oldest)),
        "groups_alike": float(sum(not teaches(group) for group in groups)),
        "time_group": round(sum(group.rollout_seconds for group in groups) / len(groups), 4),
        "time_reward": round(sum(group.reward_seconds for group in groups), 4),
    }
    greedy = [reward for group in groups for reward in _greedy(group)]
    if greedy:
        numbers["reward_greedy"] = _mean(greedy)
    return numbers | _by_function(groups)


def describe_validation(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Numbers of held-out groups for the log; NaN where nothing could be scored. Each begins with eval_."""
    rewards = [reward for group in groups for reward in group.rewards]
    known = [reward for reward in rewards if not math.isnan(reward)]
    lengths = [length for group in groups for length in group.lengths]
    answers = max(len(group.rewards) for group in groups)
    # Of the first function alone: others say how an answer was found, and their sum may pass without it.
    scores = [_scores(group) for group in groups]
    return {
        "eval_reward": _mean(rewards),
        **{f"eval_{name}": value for name, value in _by_function(groups).items()},
        **{f"eval_pass@{k}": mean_pass_at_k(scores, k, right=RIGHT) for k in powers_up_to(answers)},
        "eval_completion_length": sum(lengths) / len(lengths),
        "eval_unscorable": float(len(rewards) - len(known)),
    }


def _scores(group: ScoredGroup) -> list[float]:
    """What the first function gave to each answer; NaN where it says nothing, or the environment failed."""
    scores = zip(group.table.scores[0], group.finishes, strict=True)
    return [math.nan if score is None or finish == "failed" else score for score, finish in scores]


def _by_function(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """What each reward function gave on average and how often it failed, and what functions measured (log_metric)."""
    table = join([group.table for group in groups])
    broken = sum(finish == "failed" for group in groups for finish in group.finishes)
    return {
        **({"failed_environment": float(broken)} if broken else {}),
        **{f"reward_{name}": score for name, score in table.means.items()},
        **{f"failed_{name}": float(count) for name, count in table.failures.items()},
        **{f"metric_{name}": value for name, value in table.metrics.items()},
    }


def _greedy(group: ScoredGroup) -> tuple[float, ...]:
    """The reward of its greedy answer, if it has one."""
    return () if group.baseline is None else (group.baseline,)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
