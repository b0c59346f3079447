import math
from fractions import Fraction
from itertools import combinations

import pytest

from raytune.rewards.pass_at_k import mean_pass_at_k, pass_at_k, powers_up_to


def counted(num_answers: int, num_right: int, k: int) -> Fraction:
    """Every choice of k answers, one by one."""
    answers = [place < num_right for place in range(num_answers)]
    chosen = [any(choice) for choice in combinations(answers, k)]
    return Fraction(sum(chosen), len(chosen))


@pytest.mark.parametrize("num_answers", range(1, 9))
def test_it_is_the_share_of_choices_with_a_right_answer(num_answers: int) -> None:
    for num_right in range(num_answers + 1):
        for k in range(1, num_answers + 1):
            expected = float(counted(num_answers, num_right, k))
            assert pass_at_k(num_answers, num_right, k) == pytest.approx(expected, abs=1e-12)


def test_it_stays_exact_where_binomials_overflow_floats() -> None:
    exact = 1 - Fraction(math.comb(1990, 100), math.comb(2000, 100))
    assert pass_at_k(2000, 10, 100) == pytest.approx(float(exact), rel=1e-12)


def test_its_mean_is_the_chance_of_k_fresh_answers() -> None:
    """Over binomial c the estimator averages to 1 - (1 - p)^k: it is unbiased."""
    n, k, p = 8, 3, 0.3
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(2, 1, 3), (2, 1, 0), (2, 3, 1), (2, -1, 1)])
def test_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, c, k)


def test_answers_without_a_reward_do_not_count() -> None:
    rewards = [(1.0, 0.0, math.nan), (0.0, 0.5, 0.0), (math.nan, math.nan, 1.0)]
    assert mean_pass_at_k(rewards, 1) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert mean_pass_at_k(rewards, 2) == pytest.approx((1 + 0) / 2)
    assert mean_pass_at_k(rewards, 3, right=0.5) == 1.0
    assert math.isnan(mean_pass_at_k(rewards, 4))


def test_the_ks_of_a_validation() -> None:
    assert powers_up_to(8) == (1, 2, 4, 8)
    assert powers_up_to(6) == (1, 2, 4, 6)
    assert powers_up_to(1) == (1,)
