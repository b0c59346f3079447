import math

import pytest
import torch

from raytune.losses.supervised import cross_entropy


def naive_loss(logits: list[list[float]], labels: list[int], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_z = math.log(sum(math.exp(x) for x in row))
        nll = [log_z - x for x in row]
        total += (1 - smoothing) * nll[label] + smoothing * sum(nll) / len(nll)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sum_equals_the_formula(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 11), torch.randint(11, (7,))
    sums = cross_entropy(logits, labels, label_smoothing=smoothing)
    assert sums.loss.item() == pytest.approx(naive_loss(logits.tolist(), labels.tolist(), smoothing), rel=1e-6)
    assert sums.count == 7


def test_correct_counts_argmax_hits():
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert cross_entropy(logits, torch.tensor([1, 1, 1])).correct.item() == 2


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    assert cross_entropy(torch.zeros(3, 50), torch.tensor([1, 2, 3])).loss.item() == pytest.approx(3 * math.log(50))
