import numpy as np
import pytest
import torch

from raytune.losses.reduce import means
from raytune.losses.value import value_loss

# clip 0.2 around the old value; returns 1
#   V 0.9, old 0.5: free (0.1)^2 = .01, clipped V .7: (.3)^2 = .09 -> .09, no gradient
#   V 0.1, old 0.5: free .81, clipped .3: .49 -> .81, gradient V - R = -.9
#   V 0.6, old 0.5: inside, .16, gradient -.4
VALUES = [0.9, 0.1, 0.6]


def test_the_worse_of_free_and_clipped():
    values = torch.tensor(VALUES, dtype=torch.float64, requires_grad=True)
    old, returns, weights = torch.full((3,), 0.5).double(), torch.ones(3).double(), torch.tensor([1.0, 1.0, 0.5])
    sums = value_loss(values, old, returns, weights.double(), clip=0.2)
    sums.loss.backward()
    assert sums.loss.item() == pytest.approx(0.5 * (0.09 + 0.81 + 0.5 * 0.16))
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, -0.9, -0.2])
    shown = means(sums)
    assert shown["value_clip"] == pytest.approx(1 / 3)
    assert shown["value"] == pytest.approx(1.6 / 3)
    assert shown["value_error"] == pytest.approx((0.01 + 0.81 + 0.16) / 3)


def test_without_a_clip_it_is_half_the_squared_error():
    values = torch.tensor(VALUES, dtype=torch.float64)
    sums = value_loss(values, torch.zeros(3).double(), torch.ones(3).double(), torch.ones(3).double(), clip=None)
    assert sums.loss.item() == pytest.approx(0.5 * (0.01 + 0.81 + 0.16))
    assert means(sums)["value_clip"] == 0


def test_explained_variance_from_the_sums():
    draw = np.random.default_rng(0)
    values, returns = draw.normal(size=(2, 50))
    shown = means(
        value_loss(
            torch.from_numpy(values), torch.from_numpy(values), torch.from_numpy(returns), torch.ones(50).double()
        )
    )
    explained = 1 - shown["value_error"] / (shown["value_return_squared"] - shown["value_return"] ** 2)
    assert explained == pytest.approx(1 - ((values - returns) ** 2).mean() / returns.var())


def test_no_tokens():
    values = torch.zeros(0, requires_grad=True)
    sums = value_loss(values, torch.zeros(0), torch.zeros(0), torch.zeros(0))
    sums.loss.backward()
    assert sums.loss.item() == 0
