"""Estimators from scores to token advantages, against NumPy on compacted sequences."""

import math

import numpy as np
import pytest
import torch

from raytune.losses.advantage import GroupRule
from raytune.losses.estimate import Estimator, EstimatorRule, Outcomes, estimate_advantages
from raytune.losses.whiten import WhitenRule

NAN = math.nan
MASK = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 1]], dtype=bool)
SCORES = np.array([1.0, 0.0, 0.25, 0.5])
GROUPS = np.array([4, 4, 9, 9])
KL = np.linspace(-0.2, 0.5, 20).reshape(4, 5)
VALUES = np.sin(np.arange(20.0)).reshape(4, 5)


def outcomes(**given: np.ndarray) -> Outcomes:
    base = {"scores": SCORES, "groups": GROUPS, "mask": MASK} | given
    return Outcomes(**{name: torch.from_numpy(np.asarray(value)) for name, value in base.items()})


def compacted_returns(scores: np.ndarray, kl: np.ndarray | None, coef: float, gamma: float) -> list[np.ndarray]:
    """Reward to come per answer, on the policy's tokens alone, as the plain double sum."""
    result = []
    for i, keep in enumerate(MASK):
        rewards = np.zeros(keep.sum()) if kl is None else -coef * kl[i, keep]
        rewards[-1] += scores[i]
        steps = range(len(rewards))
        result.append(np.array([sum(gamma ** (k - t) * rewards[k] for k in steps if k >= t) for t in steps]))
    return result


def whitened(parts: list[np.ndarray], ddof: int = 1) -> np.ndarray:
    flat = np.concatenate(parts)
    return (flat - flat.mean()) / np.sqrt(flat.var(ddof=ddof) + 1e-8)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("coef", [0.0, 0.3])
def test_reinforce_plus_plus(gamma, coef):
    estimate = estimate_advantages(outcomes(kl=KL), EstimatorRule("reinforce++", gamma=gamma, kl_coef=coef))
    parts = compacted_returns(SCORES, KL, coef, gamma)
    assert estimate.returns is not None
    np.testing.assert_allclose(estimate.returns.numpy()[MASK], np.concatenate(parts), atol=1e-12)
    np.testing.assert_allclose(estimate.advantages.numpy()[MASK], whitened(parts), atol=1e-12)
    assert not estimate.advantages.numpy()[~MASK].any()


def test_reinforce_plus_plus_reaches_every_turn():
    # One system resets the return at a tool token; then the first two tokens of the first answer would get 0.
    estimate = estimate_advantages(outcomes(), EstimatorRule("reinforce++"))
    assert estimate.returns is not None
    assert estimate.returns[0].tolist() == [1, 1, 0, 1, 0]


def test_reinforce_plus_plus_baseline():
    # group means 0.5 and 0.375: centred 0.5, -0.5, -0.125, 0.125 on 3, 5, 1, 3 tokens
    estimate = estimate_advantages(outcomes(), EstimatorRule("reinforce++_baseline"))
    flat = np.repeat([0.5, -0.5, -0.125, 0.125], [3, 5, 1, 3])
    np.testing.assert_allclose(
        estimate.advantages.numpy()[MASK], (flat - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8), atol=1e-12
    )


def test_equal_groups_stay_out_of_whitening_unless_asked_in():
    scores = np.array([0.7, 0.7, 0.0, 1.0])
    out = estimate_advantages(outcomes(scores=scores), EstimatorRule("reinforce++_baseline")).advantages.numpy()
    assert not out[:2].any()
    alone = np.repeat([-0.5, 0.5], [1, 3])
    np.testing.assert_allclose(out[MASK][8:], (alone - alone.mean()) / np.sqrt(alone.var(ddof=1) + 1e-8), atol=1e-12)
    taken_in = EstimatorRule("reinforce++_baseline", whiten_flat=True)
    out = estimate_advantages(outcomes(scores=scores), taken_in).advantages.numpy()
    flat = np.repeat([0.0, 0.0, -0.5, 0.5], [3, 5, 1, 3])
    np.testing.assert_allclose(out[MASK], (flat - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8), atol=1e-12)


def test_remax_takes_the_greedy_reward_off():
    # 1 - 0.4, 0 - 0.1, 0.25 - 0.25, 0.5 - 0.9, on each token of the policy
    greedy = np.array([0.4, 0.1, 0.25, 0.9])
    estimate = estimate_advantages(outcomes(greedy=greedy), EstimatorRule("remax"))
    np.testing.assert_allclose(estimate.advantages.numpy()[MASK], np.repeat([0.6, -0.1, 0, -0.4], [3, 5, 1, 3]))


def test_remax_with_a_fine_counts_what_is_still_to_come():
    greedy = np.array([0.4, 0.1, 0.25, 0.9])
    estimate = estimate_advantages(outcomes(greedy=greedy, kl=KL), EstimatorRule("remax", kl_coef=0.3))
    parts = compacted_returns(SCORES, KL, 0.3, 1.0)
    expected = np.concatenate([part - base for part, base in zip(parts, greedy, strict=True)])
    np.testing.assert_allclose(estimate.advantages.numpy()[MASK], expected, atol=1e-12)


def test_rloo_with_the_divergence_in_the_reward():
    # TRL's RLOO: reward - beta * sum of k1 over the answer, then leave one out.
    fined = SCORES - 0.05 * np.where(MASK, KL, 0).sum(axis=1)
    expected = np.array([fined[0] - fined[1], fined[1] - fined[0], fined[2] - fined[3], fined[3] - fined[2]])
    estimate = estimate_advantages(outcomes(kl=KL), EstimatorRule("rloo", kl_coef=0.05))
    np.testing.assert_allclose(estimate.advantages.numpy()[MASK], np.repeat(expected, MASK.sum(axis=1)), atol=1e-12)
    assert estimate.returns is None


@pytest.mark.parametrize("whiten_gae", [True, False])
@pytest.mark.parametrize("whiten_rewards", [True, False])
def test_gae_is_whitened_over_the_tokens_of_the_policy(whiten_gae, whiten_rewards):
    rule = EstimatorRule("gae", gamma=0.99, lam=0.9, kl_coef=0.2, whiten_gae=whiten_gae, whiten_rewards=whiten_rewards)
    estimate = estimate_advantages(outcomes(values=VALUES, kl=KL), rule)
    given = [-0.2 * KL[i, keep] for i, keep in enumerate(MASK)]
    for rewards, score in zip(given, SCORES, strict=True):
        rewards[-1] += score
    if whiten_rewards:
        # TRL's masked_whiten with shift_mean=False: scaled around the mean of all tokens, which stays.
        flat = np.concatenate(given)
        given = [(part - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8) + flat.mean() for part in given]
    parts, targets = [], []
    for i, keep in enumerate(MASK):
        rewards, values = given[i], VALUES[i, keep]
        delta = rewards + 0.99 * np.append(values[1:], 0.0) - values
        decay = 0.99 * 0.9
        steps = range(len(delta))
        parts.append(np.array([sum(decay ** (k - t) * delta[k] for k in steps if k >= t) for t in steps]))
        targets.append(parts[-1] + values)
    expected = whitened(parts) if whiten_gae else np.concatenate(parts)
    np.testing.assert_allclose(estimate.advantages.numpy()[MASK], expected, atol=1e-12)
    assert estimate.returns is not None
    np.testing.assert_allclose(estimate.returns.numpy()[MASK], np.concatenate(targets), atol=1e-12)


def test_population_variance_with_a_floor():
    rule = EstimatorRule("reinforce++", whiten=WhitenRule(ddof=0, eps=1e-8, guard="floor"))
    flat = np.repeat(SCORES, [3, 5, 1, 3])
    expected = (flat - flat.mean()) / flat.std()
    np.testing.assert_allclose(estimate_advantages(outcomes(), rule).advantages.numpy()[MASK], expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["gae", "reinforce++", "reinforce++_baseline", "remax", "group", "rloo"])
def test_an_unscorable_answer_changes_nothing_for_the_others(kind: Estimator):
    scores = np.array([1.0, NAN, 0.0, 0.25, 0.5])
    keep = np.array([0, 2, 3, 4])
    mask, groups = np.ones((5, 3), dtype=bool), np.zeros(5, dtype=np.int64)
    more = {"values": VALUES.reshape(-1)[:15].reshape(5, 3), "greedy": np.array([0.1, 0.2, 0.3, 0.4, 0.5])}
    rule = EstimatorRule(kind, group=GroupRule(eps=0.0), whiten_rewards=True)
    whole = outcomes(scores=scores, mask=mask, groups=groups, **more)
    part = outcomes(scores=scores[keep], mask=mask[keep], groups=groups[keep], **{k: v[keep] for k, v in more.items()})
    with_it = estimate_advantages(whole, rule).advantages
    assert not with_it[1].any()
    np.testing.assert_allclose(with_it[keep].numpy(), estimate_advantages(part, rule).advantages.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "kind", ["group", "group_batch_std", "group_no_std", "leave_one_out", "rloo", "reinforce++_baseline"]
)
def test_equal_rewards_contribute_exactly_nothing(kind: Estimator):
    scores = torch.full((8,), 0.7)
    made = Outcomes(scores, torch.tensor([0] * 8), torch.ones(8, 3))
    assert not estimate_advantages(made, EstimatorRule(kind)).advantages.any()


@pytest.mark.parametrize(("kind", "word"), [("gae", "values"), ("remax", "greedy")])
def test_what_an_estimator_needs_must_be_there(kind: Estimator, word):
    with pytest.raises(ValueError, match=word):
        estimate_advantages(outcomes(), EstimatorRule(kind))
