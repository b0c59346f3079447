"""Returns and generalised advantages: golden numbers, and tool tokens that must not count."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from raytune.losses.gae import discounted_returns, gae, scorable_rows, token_rewards

# The seven values were drawn once; three tokens of the policy, two of a tool, two of the policy; reward 1 at the end.
VALUES = [0.49626, 0.76822, 0.08848, 0.13203, 0.30742, 0.63408, 0.49009]
MASK = [1, 1, 1, 0, 0, 1, 1]
REWARDS = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def row(numbers: Sequence[float]) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def gae_by_definition(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """The sum of the paper's eq. 16 over a sequence without gaps, term by term."""
    length = len(rewards)
    ahead = np.append(values[1:], 0.0)
    delta = rewards + gamma * ahead - values
    return np.array([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)])


def test_golden_multi_turn_numbers():
    # By hand, gamma 1, lam 0.95, from the end: 1 - .4901 = .5099; (.4901 - .6341) + .95 * .5099 = .3404;
    # (.6341 - .0885) + .95 * .3404 = .8690; (.0885 - .7682) + .95 * .8690 = .1458;
    # (.7682 - .4963) + .95 * .1458 = .4105
    advantages, returns = gae(row(REWARDS), row(VALUES), row(MASK), gamma=1.0, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0.4105, 0.1458, 0.8690, 0, 0, 0.3404, 0.5099], abs=1e-4)
    assert returns[0].tolist() == pytest.approx(
        [0.4105 + 0.4963, 0.1458 + 0.7682, 0.8690 + 0.0885, 0, 0, 0.3404 + 0.6341, 1.0], abs=2e-4
    )


@pytest.mark.parametrize("wrong", [(0.3262, 0.0571, 0.7757), (0.3454, 0.0773, 0.7969)])
def test_stepping_through_tool_tokens_is_not_what_we_do(wrong):
    # What two systems give for the first turn of the same data: a decay and a value of nobody's for each tool token.
    advantages, _ = gae(row(REWARDS), row(VALUES), row(MASK), gamma=1.0, lam=0.95)
    assert np.abs(advantages[0, :3].numpy() - np.array(wrong)).min() > 0.06


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.9), (0.5, 0.0), (1.0, 1.0)])
def test_masked_equals_compacted(seed, gamma, lam):
    draw = np.random.default_rng(seed)
    mask = draw.random((5, 13)) < 0.6
    rewards, values = draw.normal(size=(2, 5, 13))
    # What stands outside the mask must not be read at all.
    rewards[~mask], values[~mask] = np.nan, np.nan
    tensors = (torch.from_numpy(rewards), torch.from_numpy(values), torch.from_numpy(mask))
    advantages, returns = gae(*tensors, gamma=gamma, lam=lam)
    to_come = discounted_returns(tensors[0], tensors[2], gamma=gamma)
    for i, keep in enumerate(mask):
        expected = gae_by_definition(rewards[i, keep], values[i, keep], gamma, lam)
        np.testing.assert_allclose(advantages[i].numpy()[keep], expected, atol=1e-12)
        np.testing.assert_allclose(returns[i].numpy()[keep], expected + values[i, keep], atol=1e-12)
        # With lam 1 and no critic the advantage is the return.
        plain = gae_by_definition(rewards[i, keep], np.zeros(keep.sum()), gamma, 1.0)
        np.testing.assert_allclose(to_come[i].numpy()[keep], plain, atol=1e-12)
        assert not advantages[i].numpy()[~keep].any()
        assert not to_come[i].numpy()[~keep].any()


def test_a_reward_reaches_the_turns_before_a_tool_call():
    # Systems that reset at a 0 of the mask give 0, 0, 0 for the first turn.
    returns = discounted_returns(row(REWARDS), row(MASK), gamma=1.0)
    assert returns[0].tolist() == [1, 1, 1, 0, 0, 1, 1]


def test_discount_counts_tokens_of_the_policy():
    # five tokens of the policy: 0.5^4 for the first, 0.5^2 for the last before the tool
    returns = discounted_returns(row(REWARDS), row(MASK), gamma=0.5)
    assert returns[0].tolist() == pytest.approx([0.0625, 0.125, 0.25, 0, 0, 0.5, 1.0])


def test_an_unscorable_row_moves_neither_policy_nor_critic():
    rewards = row(REWARDS).repeat(2, 1)
    rewards[0, 6] = math.nan
    values, mask = row(VALUES).repeat(2, 1), row(MASK).repeat(2, 1)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    assert not advantages[0].any()
    assert torch.equal(returns[0], values[0] * mask[0])
    assert advantages[1, 0] == pytest.approx(0.4105, abs=1e-4)
    assert not discounted_returns(rewards, mask, gamma=1.0)[0].any()
    assert scorable_rows(rewards, mask).tolist() == [False, True]


def test_the_score_lands_on_the_last_token_of_the_policy():
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0, 5.0]), mask)
    assert rewards.tolist() == [[0, 0, 0, 2, 0], [-1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_the_divergence_is_a_fine_on_each_token():
    mask = torch.tensor([[1, 1, 0, 1]])
    kl = torch.tensor([[0.5, -1.0, math.nan, 2.0]])
    rewards = token_rewards(torch.tensor([1.0]), mask, kl=kl, kl_coef=0.1)
    # -0.1 * kl, and 1 - 0.1 * 2 = 0.8 at the end
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.1, 0.0, 0.8])


def test_everything_is_double():
    advantages, returns = gae(row(REWARDS).float(), row(VALUES).float(), row(MASK), gamma=1.0, lam=0.95)
    assert {advantages.dtype, returns.dtype} == {torch.float64}
