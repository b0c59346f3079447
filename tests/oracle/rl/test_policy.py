"""The policy loss, token by token: clips, ratio levels and entropy, against numbers worked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from raytune.losses.kl import KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.policy import PolicyInputs, PolicyRule, policy_loss, surrogate
from raytune.losses.reduce import MetricSums, means
from raytune.losses.sequences import Sequences, token_weights

PLAIN = PolicyRule()


def losses(ratios: list[float], advantages: list[float], rule: PolicyRule) -> tuple[list[float], list[float]]:
    """Loss of each token and its derivative by the token's log-prob."""
    logprobs = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    loss = surrogate(logprobs.exp(), torch.tensor(advantages, dtype=torch.float64), logprobs, rule)
    loss.sum().backward()
    assert logprobs.grad is not None
    return loss.tolist(), logprobs.grad.tolist()


# clip 0.8 .. 1.2; the derivative of rho by log pi is rho, 0 where the clipped branch is the smaller one
#   rho  A: -min(rho A, clip A)         derivative
#   1.5 +1: -min(1.5, 1.2) = -1.2       0
#   0.5 +1: -min(0.5, 0.8) = -0.5       -0.5
#   1.5 -2: -min(-3.0, -2.4) = 3.0      3.0
#   0.5 -2: -min(-1.0, -1.6) = 1.6      0
#   1.1 +3: -3.3                        -3.3
def test_symmetric_clip():
    got, slope = losses([1.5, 0.5, 1.5, 0.5, 1.1], [1, 1, -2, -2, 3], PLAIN)
    assert got == pytest.approx([-1.2, -0.5, 3.0, 1.6, -3.3])
    assert slope == pytest.approx([0, -0.5, 3.0, 0, -3.3])


def test_clip_higher_leaves_room_upwards():
    # 1.25 lies inside 0.8 .. 1.28 and outside 0.8 .. 1.2
    rule = PolicyRule(clip_high=0.28)
    got, slope = losses([1.25, 1.3, 0.7], [1, 1, -1], rule)
    assert got == pytest.approx([-1.25, -1.28, 0.8])
    assert slope == pytest.approx([-1.25, 0, 0])


def test_dual_clip_stops_negative_advantages_at_c():
    # rho 5, A -2: the clipped loss is 10, the bound 3 * 2 = 6; below the bound and for A > 0 nothing changes
    rule = PolicyRule(dual_clip=3.0)
    got, slope = losses([5.0, 2.0, 5.0, 0.5], [-2, -2, 2, -2], rule)
    assert got == pytest.approx([6.0, 4.0, -2.4, 1.6])
    assert slope == pytest.approx([0, 4.0, 0, 0])


def test_a_cap_on_the_ratio_holds_for_either_sign():
    # cap 1.1 lies inside the upper bound: A +1 gives min(1.1, 1.2); A -1 gives min(-1.1, -1.2) = -1.2
    rule = PolicyRule(ratio_cap=1.1)
    got, _ = losses([1.5, 1.5, 1.05], [1, -1, -1], rule)
    assert got == pytest.approx([-1.1, 1.2, 1.05])


def test_without_bounds_it_is_the_weighted_policy_gradient():
    got, slope = losses([5.0, 0.1], [2, -1], PolicyRule(clip_low=None, clip_high=None))
    assert got == pytest.approx([-10.0, 0.1])
    assert slope == pytest.approx([-10.0, 0.1])


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    # weight clip(rho): 1.2, 0.8, 1.1; loss -w A log rho (log pi = log rho here), slope -w A
    rule = PolicyRule(clip="cispo")
    got, slope = losses([1.5, 0.5, 1.1], [1, -2, 1], rule)
    assert got == pytest.approx([-1.2 * math.log(1.5), 1.6 * math.log(0.5), -1.1 * math.log(1.1)])
    assert slope == pytest.approx([-1.2, 1.6, -1.1])
    _, open_below = losses([0.5], [-2], replace(rule, clip_low=None))
    assert open_below == pytest.approx([1.0])


def inputs(seed: int = 0) -> PolicyInputs:
    draw = np.random.default_rng(seed)
    index = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    old, new = torch.from_numpy(draw.normal(-1.5, 0.5, (2, 9)))
    sequences = Sequences(index, 3)
    return PolicyInputs(
        logprobs=(old + 0.3 * (new - old)).requires_grad_(),
        old_logprobs=old,
        advantages=torch.tensor([1.5, -0.5, 0.7], dtype=torch.float64)[index],
        weights=token_weights(sequences, "sequence", dtype=torch.float64),
        sequences=sequences,
    )


def gradient(tokens: PolicyInputs, rule: PolicyRule) -> torch.Tensor:
    tokens.logprobs.grad = None
    policy_loss(tokens, rule=rule).loss.backward()
    assert tokens.logprobs.grad is not None
    return tokens.logprobs.grad.clone()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bounds", [(0.2, 0.2), (3e-4, 4e-4), (None, None)])
def test_gspo_token_form_has_the_gradient_of_the_sequence_form(seed, bounds):
    rule = PolicyRule(ratio="sequence", clip_low=bounds[0], clip_high=bounds[1])
    tokens = inputs(seed)
    whole, single = (gradient(tokens, replace(rule, ratio=form)) for form in ("sequence", "sequence_token"))
    assert torch.allclose(whole, single, atol=1e-14)
    values = [
        policy_loss(tokens, rule=replace(rule, ratio=form)).loss.item() for form in ("sequence", "sequence_token")
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-14)


def test_gspo_by_the_paper():
    # s_i = exp(mean log ratio), loss = sum_i -min(s_i A_i, clip(s_i) A_i)
    tokens = inputs()
    change = (tokens.logprobs - tokens.old_logprobs).detach().numpy()
    expected = 0.0
    for part, advantage in zip([change[:3], change[3:4], change[4:]], [1.5, -0.5, 0.7], strict=True):
        ratio = math.exp(part.mean())
        expected += -min(ratio * advantage, min(max(ratio, 0.97), 1.04) * advantage)
    rule = PolicyRule(ratio="sequence", clip_low=0.03, clip_high=0.04)
    assert policy_loss(tokens, rule=rule).loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_product_form_by_the_formula():
    tokens = inputs()
    change = (tokens.logprobs - tokens.old_logprobs).detach().numpy()
    ratios = [math.exp(part.sum()) for part in (change[:3], change[3:4], change[4:])]
    expected = -sum(ratio * advantage for ratio, advantage in zip(ratios, [1.5, -0.5, 0.7], strict=True))
    rule = PolicyRule(ratio="sequence_product", clip_low=None, clip_high=None)
    assert policy_loss(tokens, rule=rule).loss.item() == pytest.approx(expected, rel=1e-12)


def test_on_policy_every_form_is_the_plain_policy_gradient():
    # rho = 1 everywhere: the derivative of each token's loss is -A * weight
    tokens = inputs()
    fresh = replace(tokens, old_logprobs=tokens.logprobs.detach())
    for rule in (PLAIN, PolicyRule(clip="cispo"), PolicyRule(ratio="sequence"), PolicyRule(dual_clip=3.0)):
        assert torch.allclose(gradient(fresh, rule), -fresh.advantages * fresh.weights, atol=1e-14)


def test_entropy_and_divergence_join_with_their_weights():
    tokens = inputs()
    entropies, reference = torch.linspace(0.1, 0.9, 9).double(), tokens.old_logprobs - 0.2
    whole = replace(tokens, entropies=entropies, ref_logprobs=reference)
    sums = policy_loss(whole, rule=PolicyRule(entropy_coef=0.01), kl=KLRule(coef=0.05, estimator="k2"))
    weights = tokens.weights.numpy()
    k2 = 0.5 * (tokens.logprobs.detach().numpy() - reference.numpy()) ** 2
    extra = 0.05 * (k2 * weights).sum() - 0.01 * (entropies.numpy() * weights).sum()
    assert sums.loss.item() == pytest.approx(policy_loss(tokens, rule=PLAIN).loss.item() + extra, rel=1e-12)
    shown = means(sums)
    assert shown["entropy"] == pytest.approx(0.5)
    assert shown["kl"] == pytest.approx(k2.mean())
    assert shown["kl_saturated"] == 0


def test_rollout_weights_scale_the_surrogate_but_not_the_divergence():
    tokens = replace(inputs(), ref_logprobs=torch.zeros(9, dtype=torch.float64))
    kl = KLRule(coef=0.1)
    off = replace(tokens, rollout_logprobs=tokens.old_logprobs - math.log(1.5))
    bare = policy_loss(tokens, rule=PLAIN).loss
    both = policy_loss(tokens, rule=PLAIN, kl=kl).loss
    corrected = policy_loss(off, rule=PLAIN, kl=kl, corrections=(Correction("token", "truncate", high=2.0),)).loss
    assert corrected.item() == pytest.approx((both + 0.5 * bare).item(), rel=1e-12)
    assert policy_loss(off, rule=PLAIN, kl=kl).loss.item() == pytest.approx(both.item(), rel=1e-12)


def test_metrics_by_hand():
    ratios, advantages = [1.5, 0.5, 4.0, 0.5, 1.0], [1.0, 1.0, -1.0, -1.0, 0.0]
    old = torch.zeros(5, dtype=torch.float64)
    logprobs, sequences = (
        torch.tensor(ratios, dtype=torch.float64).log(),
        Sequences(torch.zeros(5, dtype=torch.int64), 1),
    )
    tokens = PolicyInputs(logprobs, old, torch.tensor(advantages).double(), torch.ones(5).double(), sequences)
    shown = means(policy_loss(tokens, rule=PolicyRule(dual_clip=3.0)))
    # above 1.2 with A > 0: the first; below 0.8 with A < 0: the fourth; above 3 with A < 0: the third
    assert (shown["clip_high"], shown["clip_low"], shown["clip_dual"]) == pytest.approx((0.2, 0.2, 0.2))
    assert (shown["ratio"], shown["ratio_max"]) == pytest.approx((1.5, 4.0))
    assert shown["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 5)


def test_no_tokens_still_reach_the_weights():
    weight = torch.ones(3, requires_grad=True)
    nothing = (weight * 2)[:0]
    empty = torch.zeros(0)
    sequences = Sequences(torch.zeros(0, dtype=torch.int64), 2)
    tokens = PolicyInputs(nothing, empty, empty, empty, sequences, empty, empty, empty)
    sums: MetricSums = policy_loss(tokens, rule=PLAIN, kl=KLRule(coef=0.1), corrections=(Correction(),))
    sums.loss.backward()
    assert weight.grad is not None
    assert not weight.grad.any()
    assert sums.count == 0
    assert set(means(sums).values()) == {0.0}


def test_a_ratio_beyond_the_clamp_stays_finite():
    old, new = torch.tensor([-200.0, -1.0]), torch.tensor([-1.0, -200.0], requires_grad=True)
    sequences = Sequences(torch.tensor([0, 1]), 2)
    tokens = PolicyInputs(new, old, torch.tensor([-1.0, -1.0]), torch.ones(2), sequences)
    sums = policy_loss(tokens, rule=PLAIN)
    sums.loss.backward()
    assert sums.loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()
