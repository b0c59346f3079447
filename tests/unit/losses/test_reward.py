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


def test_scores_far_apart_do_not_overflow():
    sums = pair_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert sums.loss.item() == pytest.approx(1000.0)
