import math
import pickle

import pytest
import torch

from raytune.rewards.table import RewardTable, join, unscorable

SCORES = ((1.0, None, 0.25, None), (-0.5, 2.0, None, None))
TABLE = RewardTable(("right", "short"), (1.0, 0.1), SCORES)


def test_the_reward_is_the_weighted_sum_over_who_scored() -> None:
    # 1 - 0.05; 0.2; 0.25; nobody.
    assert TABLE.combined[:3] == pytest.approx((0.95, 0.2, 0.25))
    assert math.isnan(TABLE.combined[3])


def test_the_sum_is_trls() -> None:
    rows = torch.tensor([[math.nan if score is None else score for score in column] for column in SCORES]).T
    theirs = (rows * torch.tensor([1.0, 0.1])).nansum(dim=1)
    theirs[rows.isnan().all(dim=1)] = math.nan
    torch.testing.assert_close(torch.tensor(TABLE.combined), theirs, equal_nan=True)


def test_a_failure_leaves_the_sample_without_a_reward() -> None:
    table = RewardTable(("right", "short"), (1.0, 0.1), ((1.0, math.nan, math.nan), (-0.5, 2.0, None)))
    assert table.combined[0] == pytest.approx(0.95)
    assert list(map(math.isnan, table.combined)) == [False, True, True]
    assert table.means == {"right": 1.0, "short": 0.75}
    assert table.failures == {"right": 2, "short": 0}


def test_a_function_that_only_watches_gives_no_reward() -> None:
    table = RewardTable(("right", "seen"), (1.0, 0.0), ((None, 1.0), (5.0, 5.0)))
    assert math.isnan(table.combined[0])
    assert table.combined[1] == 1.0
    assert table.means == {"right": 1.0, "seen": 5.0}
    assert RewardTable(("right", "seen"), (1.0, 0.0), ((1.0,), (math.nan,))).combined == (1.0,)


def test_each_function_is_told_apart() -> None:
    assert TABLE.means == {"right": 0.625, "short": 0.75}
    assert TABLE.num_samples == 4


def test_parts_of_a_batch_are_joined_in_order() -> None:
    first = RewardTable(
        ("f",),
        (1.0,),
        ((1.0, None, 3.0),),
        errors={"f": "one"},
        seconds={"f": 2.0},
        metrics={"m": 1.0},
        extra={"x": [1, 2, 3]},
    )
    second = RewardTable(
        ("f",), (1.0,), ((4.0,),), errors={"f": "two"}, seconds={"f": 0.5}, metrics={"m": 5.0}, extra={"x": [4]}
    )
    both = join([first, second])
    assert both.scores == ((1.0, None, 3.0, 4.0),)
    assert both.errors == {"f": "one"}
    assert both.seconds == {"f": 2.0}
    assert both.metrics == {"m": 2.0}  # (3 x 1 + 1 x 5) / 4
    assert both.extra == {"x": [1, 2, 3, 4]}


def test_a_column_that_one_part_lacks_is_left_out() -> None:
    parts = [RewardTable(("f",), (1.0,), ((1.0,),), extra={"x": [1]}), RewardTable(("f",), (1.0,), ((2.0,),))]
    assert join(parts).extra == {}


def test_tables_of_other_functions_are_not_joined() -> None:
    with pytest.raises(ValueError, match="different reward functions"):
        join([TABLE, RewardTable(("right",), (1.0,), ((1.0,),))])


def test_samples_that_were_lost() -> None:
    lost = unscorable({"right": 1.0, "short": 0.1}, 2, "the actor died")
    assert list(map(math.isnan, lost.combined)) == [True, True]
    assert lost.errors == {"right": "the actor died", "short": "the actor died"}
    assert join([TABLE, lost]).failures == {"right": 2, "short": 2}


def test_it_crosses_processes() -> None:
    assert pickle.loads(pickle.dumps(TABLE)) == TABLE


def test_the_first_samples_alone() -> None:
    table = RewardTable(("right", "short"), (1.0, 0.1), SCORES, extra={"words": [7, 8, 9, 10]})
    part = table.first(2)
    assert part.scores == ((1.0, None), (-0.5, 2.0))
    assert (part.names, part.weights, part.extra) == (table.names, table.weights, {"words": [7, 8]})
    assert table.first(4) == table
