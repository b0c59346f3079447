"""Group advantages: how each answer did against the other answers to its prompt.

One number an answer, in float64. Float32 is a trap here: the mean of eight rewards of 0.7 misses 0.7 by one unit in
the last place, and divided by a spread just as small that becomes an advantage near 1 for every answer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GroupKind = Literal["group", "group_batch_std", "group_no_std", "leave_one_out", "rloo"]


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Numbers in which systems differ.

    Args: eps: added to the spread before dividing. ddof: 1 for the sample standard deviation, 0 for the population's.
    lone: the advantage of an answer without a scorable sibling, nothing or its reward as it is. tolerance: rewards
    this close (relative to the largest, absolute below 1) are equal; parts summed in another order differ that much.
    """

    eps: float = 1e-6
    ddof: int = 1
    lone: Literal["zero", "reward"] = "zero"
    tolerance: float = 1e-9


DEFAULT_GROUP_RULE = GroupRule()


@dataclass(frozen=True, slots=True)
class _Groups:
    """Per answer, what its group looks like; all [N], float64 but for the flags."""

    scorable: Tensor
    rewards: Tensor  # 0 where unscorable
    count: Tensor  # scorable answers of the group
    deviation: Tensor  # from the group's mean
    squares: Tensor  # sum of squared deviations of the group
    flat: Tensor  # all scorable rewards of the group are equal


def group_advantages(
    kind: GroupKind, rewards: Tensor, groups: Tensor, *, rule: GroupRule = DEFAULT_GROUP_RULE
) -> Tensor:
    """Compare each answer with its group.

    With r the reward, m and s the mean and standard deviation of the group and n its size:
        group            (r - m) / (s + eps)                                      GRPO
        group_batch_std  (r - m) / (standard deviation of the whole batch + eps)
        group_no_std     r - m                                                    Dr.GRPO
        rloo             r - mean of the others = n / (n - 1) * (r - m)
        leave_one_out    as rloo, over (standard deviation of the others + eps) where that is not 0

    A reward that is NaN or infinite marks an unscorable answer: it is left out of every mean and gets 0. Answers of a
    group whose rewards are all equal get exactly 0.

    Args: rewards: [N], any float type. groups: [N] int64, equal for answers to one prompt, in any order.
    Returns: [N] float64.
    Source: Shao et al. 2024, section 4.1.2 (group); Liu et al. 2025 (group_no_std); Ahmadian et al. 2024 (rloo).
    """
    seen = _look(rewards, groups, rule.tolerance)
    others = seen.deviation * seen.count / (seen.count - 1).clamp(min=1)
    match kind:
        case "group":
            raw = seen.deviation / (_std(seen.squares, seen.count, rule.ddof) + rule.eps)
        case "group_batch_std":
            raw = seen.deviation / (_batch_std(seen, rule.ddof) + rule.eps)
        case "group_no_std":
            raw = seen.deviation
        case "rloo":
            raw = others
        case "leave_one_out":
            spread = _others_std(seen, rule.ddof)
            raw = torch.where(spread > 0, others / (spread + rule.eps), others)
    raw = torch.where(seen.flat, 0.0, raw)
    if rule.lone == "reward":
        alone = seen.rewards / (1.0 + rule.eps) if kind == "group" else seen.rewards
        raw = torch.where(seen.count == 1, alone, raw)
    return torch.where(seen.scorable, raw, 0.0)


def flat_groups(rewards: Tensor, groups: Tensor, *, rule: GroupRule = DEFAULT_GROUP_RULE) -> Tensor:
    """Say which answers can teach nothing because their whole group scored alike, or could not be scored.

    Dynamic sampling drops these groups and draws others. A test for a spread of 0 would miss groups whose spread is
    one rounding error.

    Args: rewards: [N]. groups: [N] int64.
    Returns: [N] bool.
    Source: Yu et al. 2025 (DAPO), section 3.2.
    """
    return _look(rewards, groups, rule.tolerance).flat


def _look(rewards: Tensor, groups: Tensor, tolerance: float) -> _Groups:
    ids, index = torch.unique(groups, return_inverse=True)
    scorable = rewards.isfinite()
    known = torch.where(scorable, rewards, 0.0).double()

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(ids)).index_add(0, index, values)[index]

    def extreme(how: Literal["amax", "amin"], empty: float) -> Tensor:
        start = known.new_full((len(ids),), empty)
        return start.scatter_reduce(0, index, torch.where(scorable, known, empty), how)[index]

    count = total(scorable.double())
    high, low = extreme("amax", -torch.inf), extreme("amin", torch.inf)
    scale = torch.maximum(high.abs(), low.abs()).clamp(min=1.0)
    deviation = torch.where(scorable, known - total(known) / count.clamp(min=1), 0.0)
    return _Groups(
        scorable=scorable,
        rewards=known,
        count=count,
        deviation=deviation,
        squares=total(deviation.square()),
        flat=(count < 2) | (high - low <= tolerance * scale),
    )


def _std(squares: Tensor, count: Tensor, ddof: int) -> Tensor:
    return (squares / (count - ddof).clamp(min=1)).sqrt()


def _batch_std(seen: _Groups, ddof: int) -> Tensor:
    known = seen.rewards[seen.scorable]
    return _std((known - known.mean()).square().sum(), seen.scorable.sum(), ddof)


def _others_std(seen: _Groups, ddof: int) -> Tensor:
    """Standard deviation of each answer's siblings, from the group's own squares.

    Taking one number d out of n centred numbers takes d^2 * n / (n - 1) off their sum of squares. The difference
    cancels where the siblings are all equal; what is left then is rounding, and must not be divided by.
    """
    left = seen.squares - seen.deviation.square() * seen.count / (seen.count - 1).clamp(min=1)
    left = torch.where(left > 1e-12 * seen.squares, left, 0.0)
    return _std(left, seen.count - 1, ddof)
