"""Group advantages: numbers worked by hand and numbers other systems printed when their functions were run."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from raytune.losses.advantage import GroupKind, GroupRule, flat_groups, group_advantages

KINDS: tuple[GroupKind, ...] = ("group", "group_batch_std", "group_no_std", "leave_one_out", "rloo")
ONE_OF_FOUR = [1.0, 0.0, 0.0, 0.0]
NAN = math.nan


def one_group(kind: GroupKind, rewards: list[float], ddof: int = 1) -> list[float]:
    groups = torch.zeros(len(rewards), dtype=torch.int64)
    return group_advantages(kind, torch.tensor(rewards), groups, rule=GroupRule(eps=0.0, ddof=ddof)).tolist()


def reference(kind: GroupKind, rewards: list[float], groups: list[int], eps: float) -> list[float]:
    """The formulas, one answer at a time, on the standard library's statistics."""
    known = [r for r in rewards if not math.isnan(r)]
    result = []
    for i, reward in enumerate(rewards):
        peers = [r for j, r in enumerate(rewards) if groups[j] == groups[i] and not math.isnan(r)]
        others = [r for j, r in enumerate(rewards) if j != i and groups[j] == groups[i] and not math.isnan(r)]
        if math.isnan(reward) or len(set(peers)) < 2:
            result.append(0.0)
            continue
        own, rest = reward - statistics.fmean(peers), reward - statistics.fmean(others)
        rest_std = statistics.stdev(others) if len(others) > 1 else 0.0
        scaled = rest / (rest_std + eps) if len(set(others)) > 1 else rest
        each: dict[GroupKind, float] = {
            "group": own / (statistics.stdev(peers) + eps),
            "group_batch_std": own / (statistics.stdev(known) + eps),
            "group_no_std": own,
            "rloo": rest,
            "leave_one_out": scaled,
        }
        result.append(each[kind])
    return result


# mean 1/4; squares 9/16 + 3/16 = 3/4; sample std sqrt(3/4 / 3) = 1/2
# others of the winner: 0, 0, 0, spread 0, so it is not scaled; others of a loser: 1, 0, 0, mean 1/3,
# sample variance (4/9 + 1/9 + 1/9) / 2 = 1/3, so -1/3 / sqrt(1/3) = -0.5774
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("group", [1.5, -0.5, -0.5, -0.5]),
        ("group_batch_std", [1.5, -0.5, -0.5, -0.5]),
        ("group_no_std", [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("leave_one_out", [1.0, -0.5773503, -0.5773503, -0.5773503]),
    ],
)
def test_one_winner_of_four(kind, expected):
    assert one_group(kind, ONE_OF_FOUR) == pytest.approx(expected, abs=1e-7)


def test_population_spread_divides_by_n():
    # variance 3/4 / 4, so 3/4 / sqrt(3/16) = sqrt(3)
    assert one_group("group", ONE_OF_FOUR, ddof=0)[0] == pytest.approx(math.sqrt(3))


def test_one_winner_of_eight_is_not_scaled_by_its_equal_siblings():
    rewards = [1.0] + [0.0] * 7
    assert one_group("leave_one_out", rewards)[0] == pytest.approx(1.0)
    # squares 49/64 + 7/64 = 7/8, std sqrt(1/8), 7/8 * sqrt(8) = 2.475
    assert one_group("group", rewards)[0] == pytest.approx(2.4748737)


def test_two_answers_have_no_spread_among_the_others():
    assert one_group("leave_one_out", [0.9, 0.2]) == pytest.approx([0.7, -0.7])


@pytest.mark.parametrize("size", [3, 4, 6, 7, 8, 16])
@pytest.mark.parametrize(("winner", "loser"), [(0.9, 0.1), (0.3, -0.7), (1e4, 1 / 3)])
def test_a_spread_of_rounding_is_no_spread(size, winner, loser):
    # The winner's siblings are all equal, so it is not scaled, whatever the subtraction of squares leaves over.
    rewards = torch.tensor([winner] + [loser] * (size - 1), dtype=torch.float64)
    got = group_advantages("leave_one_out", rewards, torch.zeros(size, dtype=torch.int64), rule=GroupRule(eps=0.0))
    assert got[0].item() == pytest.approx(winner - loser)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-9, 1e-6, 1e-4])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formula_written_answer_by_answer(kind, eps, seed):
    draw = np.random.default_rng(seed)
    groups = draw.permutation(np.repeat([7, 3, 11, 5], [4, 6, 2, 5])).tolist()
    rewards = draw.choice([0.0, 0.25, 1.0, -2.5], size=len(groups)).tolist()
    rewards[2] = rewards[9] = NAN
    ours = group_advantages(
        kind, torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), rule=GroupRule(eps=eps)
    )
    assert ours.tolist() == pytest.approx(reference(kind, rewards, groups, eps), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", [0.7, 0.1, 1 / 3, -0.9, 1e6, 0.0])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16])
@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-6])
def test_equal_rewards_give_exactly_zero(kind, reward, size, eps):
    # In float32 the mean of eight 0.7 is off by one unit in the last place: 0.92 each at eps 1e-9.
    rewards = torch.full((size,), reward)
    groups = torch.zeros(size, dtype=torch.int64)
    assert torch.equal(
        group_advantages(kind, rewards, groups, rule=GroupRule(eps=eps)), torch.zeros(size, dtype=torch.float64)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_that_differ_by_the_order_of_a_sum_are_equal(kind):
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.3, 0.3], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    assert group_advantages(kind, rewards, torch.zeros(4, dtype=torch.int64)).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["group", "group_no_std", "leave_one_out", "rloo"])
@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_an_unscorable_answer_is_left_out_of_the_baseline(kind, bad):
    with_it = one_group(kind, [1.0, bad, 0.0, 0.5])
    without = one_group(kind, [1.0, 0.0, 0.5])
    assert with_it[1] == 0.0
    assert with_it[:1] + with_it[2:] == pytest.approx(without, abs=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rewards", [[NAN, NAN, NAN], [NAN, 0.7, NAN], [0.7]])
def test_without_a_sibling_there_is_nothing_to_compare(kind, rewards):
    assert one_group(kind, rewards) == [0.0] * len(rewards)


@pytest.mark.parametrize(("kind", "expected"), [("group", 0.6999993), ("rloo", 0.7), ("group_no_std", 0.7)])
def test_a_lone_answer_may_keep_its_reward(kind, expected):
    # 0.7 / (1 + 1e-6): what verl's function returned when it was run
    rule = GroupRule(eps=1e-6, lone="reward")
    alone = group_advantages(kind, torch.tensor([0.7], dtype=torch.float64), torch.tensor([0]), rule=rule)
    assert alone.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_answers_does_not_matter(kind):
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.25, 1.0, 0.0, 0.75])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    order = torch.tensor([6, 1, 3, 0, 7, 4, 2, 5])
    straight = group_advantages(kind, rewards, groups)
    assert torch.allclose(group_advantages(kind, rewards[order], groups[order]), straight[order], atol=1e-15)


def test_rloo_equals_group_mean_times_n_over_n_minus_one():
    rewards, groups = torch.tensor([0.3, 0.9, 0.1, 0.4, 0.8]), torch.zeros(5, dtype=torch.int64)
    centred = group_advantages("group_no_std", rewards, groups)
    assert torch.allclose(group_advantages("rloo", rewards, groups), centred * 5 / 4, atol=1e-15)


def test_flat_groups_are_those_that_teach_nothing():
    rewards: Tensor = torch.tensor([0.7, 0.7, 1.0, 0.0, NAN, 0.5, NAN, 0.2, 0.2])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
    assert flat_groups(rewards, groups).tolist() == [True, True, False, False, True, True, True, True, True]


def test_half_precision_rewards_are_compared_in_double():
    rewards = torch.tensor([0.7] * 4 + [0.3] * 4, dtype=torch.bfloat16)
    groups = torch.tensor([0] * 4 + [1] * 4)
    assert torch.equal(group_advantages("group", rewards, groups), torch.zeros(8, dtype=torch.float64))
