"""Weights for tokens that another engine drew, and how far that engine is from the trainer."""

import math

import pytest
import torch

from raytune.losses.mismatch import Correction, mismatch_metrics, rollout_weights
from raytune.losses.sequences import Sequences

# Two answers: weights 0.5, 4 (product 2, geometric mean sqrt 2) and 8, 1, 1 (product 8, geometric mean 2).
WEIGHTS = [0.5, 4.0, 8.0, 1.0, 1.0]
SEQUENCES = Sequences(torch.tensor([0, 0, 1, 1, 1]), 2)


def weights(*rules: Correction, ratios: list[float] = WEIGHTS) -> list[float]:
    gap = torch.tensor(ratios, dtype=torch.float64).log()
    return rollout_weights(gap - 3.0, torch.full((len(ratios),), -3.0).double(), SEQUENCES, rules).weights.tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Correction("token", "truncate", high=2.0), [0.5, 2.0, 2.0, 1.0, 1.0]),
        (Correction("token", "truncate", low=0.8, high=3.0), [0.8, 3.0, 3.0, 1.0, 1.0]),
        (Correction("token", "mask", low=0.6, high=5.0), [0.0, 4.0, 0.0, 1.0, 1.0]),
        (Correction("token", "reject", low=0.6, high=5.0), [0.0, 1.0, 0.0, 1.0, 1.0]),
        (Correction("sequence", "truncate", high=3.0), [2.0, 2.0, 3.0, 3.0, 3.0]),
        (Correction("sequence", "mask", high=3.0), [2.0, 2.0, 0.0, 0.0, 0.0]),
        (Correction("sequence", "mask", low=3.0, high=None), [0.0, 0.0, 8.0, 8.0, 8.0]),
        (Correction("geometric", "truncate", high=1.9), [2**0.5, 2**0.5, 1.9, 1.9, 1.9]),
        (Correction("geometric", "reject", high=1.9), [1.0, 1.0, 0.0, 0.0, 0.0]),
        (Correction("token", "truncate", high=None), WEIGHTS),
    ],
)
def test_each_rule_by_hand(rule, expected):
    assert weights(rule) == pytest.approx(expected)


def test_rules_multiply():
    # an answer is judged by its geometric mean while its tokens keep their own weights
    judged = weights(Correction("token", "truncate", high=None), Correction("geometric", "reject", high=1.9))
    assert judged == pytest.approx([0.5, 4.0, 0.0, 0.0, 0.0])


def test_no_rule_leaves_everything():
    assert weights() == [1.0] * 5


def test_bounds_are_inclusive():
    gap, sequences = torch.zeros(1), Sequences(torch.zeros(1, dtype=torch.int64), 1)
    kept = rollout_weights(gap, gap, sequences, (Correction("token", "mask", low=1.0, high=1.0),))
    assert kept.weights.item() == 1.0
    assert not kept.outside.any()


def test_what_passes_a_bound_is_told():
    gap = torch.tensor(WEIGHTS).log()
    beyond = rollout_weights(gap, torch.zeros(5), SEQUENCES, (Correction("token", "truncate", low=0.8, high=5.0),))
    assert beyond.outside.tolist() == [True, False, True, False, False]


def test_a_token_the_engine_could_not_score_counts_as_equal():
    gap, engine = torch.tensor(WEIGHTS).log(), torch.tensor([0.0, math.nan, 0.0, 0.0, math.nan])
    assert rollout_weights(gap, engine, SEQUENCES, (Correction("sequence", "mask", high=9.0),)).weights.tolist() == (
        pytest.approx([0.5, 0.5, 8.0, 8.0, 8.0])
    )
    assert mismatch_metrics(gap, engine)[0]["mismatch_unknown"] == 2


def test_the_weight_carries_no_gradient_and_stays_finite():
    old = torch.tensor([500.0, -500.0, 0.0, 0.0, 0.0], requires_grad=True)
    fixed = rollout_weights(old, torch.zeros(5), SEQUENCES, (Correction("token", "truncate", high=None),))
    assert not fixed.weights.requires_grad
    assert fixed.weights.isfinite().all()


def test_metrics_by_hand():
    # x = 0.1, -0.2: |x| .15 on average; e^x - x - 1 = .0051709, .0187308; e^|x| = 1.1051709, 1.2214028
    sums, maxima = mismatch_metrics(torch.tensor([-1.0, -2.2]).double(), torch.tensor([-1.1, -2.0]).double())
    assert sums["mismatch_abs"].item() == pytest.approx(0.3)
    assert sums["mismatch_k3"].item() == pytest.approx(0.0051709 + 0.0187308, abs=1e-7)
    assert sums["mismatch_prob"].item() == pytest.approx(1.1051709 + 1.2214028, abs=1e-7)
    assert maxima["mismatch_abs_max"].item() == pytest.approx(0.2)
    assert sums["mismatch_unknown"] == 0
