import math

import numpy as np
import pytest
import torch

from raytune.losses.whiten import RunningMoments, WhitenRule, normalise_scores, update_moments, whiten


def test_only_tokens_under_the_mask_count():
    values = torch.tensor([[1.0, 99.0, 3.0], [5.0, math.nan, math.inf]])
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    # 1, 3, 5: mean 3, sample variance 4
    assert whiten(values, mask).tolist() == [
        pytest.approx([-1.0, 0.0, 0.0], abs=1e-8),
        pytest.approx([1.0, 0.0, 0.0], abs=1e-8),
    ]


def test_without_shift_the_mean_stays():
    # variance 4, so distances from 3 are halved
    got = whiten(torch.tensor([1.0, 3.0, 5.0]), torch.ones(3), rule=WhitenRule(shift=False))
    assert got.tolist() == pytest.approx([2.0, 3.0, 4.0])


@pytest.mark.parametrize("number", [0.7, 0.1, -1e6, 1 / 3])
def test_equal_numbers_become_exactly_zero(number):
    assert not whiten(torch.full((7,), number), torch.ones(7)).any()


@pytest.mark.parametrize("rule", [WhitenRule(), WhitenRule(ddof=0, guard="floor")])
def test_one_token_or_none_is_finite(rule):
    assert whiten(torch.tensor([3.0, 4.0]), torch.tensor([0, 1]), rule=rule).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([3.0, 4.0]), torch.tensor([0, 0]), rule=rule).tolist() == [0.0, 0.0]


def test_running_moments_equal_those_of_all_scores_at_once():
    draw = np.random.default_rng(0)
    batches = [draw.normal(100.0, 0.5, size) for size in (4, 1, 30, 7)]
    moments = RunningMoments()
    for batch in batches:
        moments = update_moments(moments, torch.from_numpy(batch))
    whole = np.concatenate(batches)
    assert (moments.count, moments.mean) == (42, pytest.approx(whole.mean()))
    assert moments.std == pytest.approx(whole.std(ddof=1))


def test_an_unscorable_score_leaves_the_moments_alone():
    moments = update_moments(RunningMoments(), torch.tensor([1.0, math.nan, 3.0]))
    assert (moments.count, moments.mean, moments.std) == (2, 2.0, pytest.approx(math.sqrt(2)))
    assert update_moments(moments, torch.tensor([math.nan])) == moments


def test_scores_in_units_of_their_spread():
    moments = RunningMoments(count=3, mean=2.0, squares=8.0)
    assert normalise_scores(torch.tensor([4.0, 2.0]), moments).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_a_first_score_is_not_divided_by_nothing():
    moments = update_moments(RunningMoments(), torch.tensor([5.0]))
    assert normalise_scores(torch.tensor([5.0]), moments).tolist() == [0.0]
