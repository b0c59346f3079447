import math

import pytest
import torch

from raytune.losses.reduce import means
from raytune.losses.reward import pair_loss

CHOSEN, REJECTED = [2.0, 0.0, 1.0], [1.0, 0.5, 1.0]


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(CHOSEN, requires_grad=True), torch.tensor(REJECTED)


def test_loss_and_gradient_by_the_formula():
    chosen, rejected = tensors()
    sums = pair_loss(chosen, rejected)
    sums.loss.backward()
    gaps = [1.0, -0.5, 0.0]
    assert sums.loss.item() == pytest.approx(sum(math.log(1 + math.exp(-gap)) for gap in gaps))
    # d/dchosen -log sigmoid(g) = sigmoid(g) - 1
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([1 / (1 + math.exp(-gap)) - 1 for gap in gaps])


def test_metrics_by_hand():
    sums = pair_loss(*tensors())
    assert sums.count == 3
    # only the first pair is right: the second is wrong, the third a tie
    assert means(sums) == pytest.approx({"accuracy": 1 / 3, "margin": 0.5 / 3, "chosen": 1.0, "rejected": 2.5 / 3})


def test_a_margin_is_asked_of_the_winner():
    margin = torch.tensor([0.5, 0.0, 2.0])
    expected = sum(math.log(1 + math.exp(-gap)) for gap in (0.5, -0.5, -2.0))
    assert pair_loss(*tensors(), margin=margin).loss.item() == pytest.approx(expected)


def test_the_centre_is_held_down():
    # sums of the scores: 3, 0.5, 2, so 9 + 0.25 + 4
    extra = pair_loss(*tensors(), center_coef=0.01).loss.item() - pair_loss(*tensors()).loss.item()
    assert extra == pytest.approx(0.1325, abs=1e-6)


def test_scores_far_apart_do_not_overflow():
    sums = pair_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert sums.loss.item() == pytest.approx(1000.0)
