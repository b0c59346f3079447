"""Divergence estimators: values, gradients, clamps, and the exact gradient of a divergence over a small vocabulary."""

import itertools
import math

import pytest
import torch

from raytune.losses.kl import KLControl, KLEstimator, KLGradient, KLRule, kl_estimate, kl_in_loss, kl_saturated
from raytune.losses.kl import update_kl_control as update
from raytune.losses.policy import PolicyInputs, PolicyRule, RatioLevel, policy_loss
from raytune.losses.sequences import Sequences


def value_and_gradient(delta: float, rule: KLRule) -> tuple[float, float]:
    logprobs = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
    estimate = kl_estimate(logprobs, torch.zeros(1, dtype=torch.float64), rule)
    estimate.sum().backward()
    assert logprobs.grad is not None
    return estimate.item(), logprobs.grad.item()


# d = 3: k1 3; k2 9/2; k3 e^-3 - 1 + 3 = 2.0498. Derivatives: 1, d = 3, 1 - e^-3 = .9502.
@pytest.mark.parametrize(
    ("estimator", "value", "gradient"), [("k1", 3.0, 1.0), ("k2", 4.5, 3.0), ("k3", 2.0498, 0.9502)]
)
def test_values_and_gradients_at_three(estimator, value, gradient):
    assert value_and_gradient(3.0, KLRule(estimator=estimator)) == pytest.approx((value, gradient), abs=1e-4)


def test_k3_still_pulls_where_an_output_clamp_lets_go():
    # d = -3: e^3 - 1 - 3 = 16.0855 and 1 - e^3 = -19.0855; clamped at 10 the value stands still and nothing pulls.
    assert value_and_gradient(-3.0, KLRule()) == pytest.approx((16.0855, -19.0855), abs=1e-4)
    assert value_and_gradient(-3.0, KLRule(clamp_output=10.0)) == (10.0, 0.0)
    assert value_and_gradient(-2.61, KLRule(clamp_output=10.0))[1] == pytest.approx(1 - math.exp(2.61))


def test_the_input_clamp_keeps_k3_finite_and_is_counted():
    deltas = torch.tensor([-1000.0, -20.5, -19.0, 0.0, 19.0, 20.5])
    assert kl_estimate(deltas, torch.zeros(6), KLRule()).isfinite().all()
    assert kl_saturated(deltas, torch.zeros(6), KLRule()).tolist() == [True, True, False, False, False, True]
    assert not kl_saturated(deltas, torch.zeros(6), KLRule(estimator="k2")).any()
    # k2 with an output clamp of 10 is cut beyond |d| = sqrt(20) = 4.47; k1 beyond 10.
    assert kl_saturated(
        torch.tensor([4.4, -4.5]), torch.zeros(2), KLRule(estimator="k2", clamp_output=10.0)
    ).tolist() == [
        False,
        True,
    ]


def test_k1_and_k2_have_no_input_clamp():
    assert value_and_gradient(-50.0, KLRule(estimator="k1")) == (-50.0, 1.0)
    assert value_and_gradient(-50.0, KLRule(estimator="k2")) == (1250.0, -50.0)


def expected_gradient(rule: KLRule, behaviour: torch.Tensor | None = None) -> torch.Tensor:
    """Gradient over logits of the expected loss term, the expectation taken over the whole vocabulary."""
    logits, reference = case()
    logprobs = logits.log_softmax(0)
    drawn = logprobs.detach() if behaviour is None else behaviour
    term = kl_in_loss(logprobs, reference, torch.exp(logprobs - drawn), rule)
    (drawn.exp() * term).sum().backward()
    assert logits.grad is not None
    return logits.grad


def true_gradient() -> torch.Tensor:
    logits, reference = case()
    logprobs = logits.log_softmax(0)
    (logprobs.exp() * (logprobs - reference)).sum().backward()
    assert logits.grad is not None
    return logits.grad


def case() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1, -0.4], dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor([1.0, 0.5, -0.2, 0.0, 0.7], dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [("k1", "ratio"), ("k3", "ratio"), ("k2", "plain")],
)
def test_the_gradient_of_the_reverse_divergence(estimator: KLEstimator, gradient: KLGradient):
    rule = KLRule(estimator=estimator, gradient=gradient)
    assert torch.allclose(expected_gradient(rule), true_gradient(), atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_ratio_holds_for_tokens_of_an_older_policy(estimator: KLEstimator):
    older = torch.tensor([0.0, 0.4, 1.0, -0.5, 0.2], dtype=torch.float64).log_softmax(0)
    got = expected_gradient(KLRule(estimator=estimator, gradient="ratio"), behaviour=older)
    assert torch.allclose(got, true_gradient(), atol=1e-12)
    # Without the ratio to the policy that drew, the expectation is another.
    assert not torch.allclose(expected_gradient(KLRule(estimator=estimator), behaviour=older), got)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_token", "sequence_product"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_the_loss_of_whole_answers_has_the_gradient_of_the_reverse_divergence(
    level: RatioLevel, estimator: KLEstimator, shift: float
):
    # Every answer of three binary tokens, each drawn by itself; of an older policy where shift is not 0.
    logits = torch.tensor([[0.3, -0.5], [1.0, 0.2], [-0.7, 0.4]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[0.0, 0.6], [-0.3, 0.1], [0.9, -0.2]], dtype=torch.float64).log_softmax(1)
    older = (logits.detach() + shift * torch.tensor([[1.0, -1.0], [0.5, 0.2], [-0.3, 1.0]])).log_softmax(1)
    table, places = logits.log_softmax(1), torch.arange(3)
    loss = divergence = torch.zeros((), dtype=torch.float64)
    for answer in itertools.product([0, 1], repeat=3):
        now, ref, old = (one[places, list(answer)] for one in (table, reference, older))
        divergence = divergence + now.sum().exp() * (now.sum() - ref.sum())
        weights, sequences = old.sum().exp().expand(3), Sequences(torch.zeros(3, dtype=torch.int64), 1)
        tokens = PolicyInputs(now, old, torch.zeros(3, dtype=torch.float64), weights, sequences, ref_logprobs=ref)
        kl = KLRule(coef=1.0, estimator=estimator, gradient="ratio")
        loss = loss + policy_loss(tokens, rule=PolicyRule(ratio=level), kl=kl).loss
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (true,) = torch.autograd.grad(divergence, logits)
    assert torch.allclose(found, true, atol=1e-12)


def test_plain_k1_has_no_gradient_and_plain_k3_has_another():
    assert torch.allclose(expected_gradient(KLRule(estimator="k1")), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    # sum_v pi (1 - pi_ref / pi) dlog pi = -sum_v pi_ref dlog pi, the gradient of KL(ref || pi): pi - pi_ref in logits.
    logits, reference = case()
    assert torch.allclose(
        expected_gradient(KLRule(estimator="k3")), (logits.softmax(0) - reference.exp()).detach(), atol=1e-12
    )


def test_the_value_is_the_estimate_whatever_the_gradient():
    logits, reference = case()
    logprobs = logits.log_softmax(0)
    plain = kl_in_loss(logprobs, reference, torch.ones(5), KLRule())
    for gradient in ("ratio", "policy_ratio"):
        assert torch.allclose(kl_in_loss(logprobs, reference, torch.ones(5), KLRule(gradient=gradient)), plain)


# 0.2 * (1 + clip(kl / 6 - 1, +-0.2) * 64 / 10000)
@pytest.mark.parametrize(
    ("observed", "coef"),
    [(6.0, 0.2), (6.6, 0.2 * (1 + 0.1 * 0.0064)), (60.0, 0.2 * (1 + 0.2 * 0.0064)), (0.0, 0.2 * (1 - 0.2 * 0.0064))],
)
def test_the_coefficient_follows_the_divergence(observed, coef):
    start = KLControl(coef=0.2, target=6.0, horizon=10_000)
    assert update(start, observed, 64).coef == pytest.approx(coef, rel=1e-12)
    assert start.coef == 0.2
