import pytest
import torch

from raytune.losses.reduce import MetricSums, means, merge


def part(loss: float, count: int, clipped: float, ratio_max: float) -> MetricSums:
    value = torch.tensor(loss, requires_grad=True)
    return MetricSums(value, count, {"clip": torch.tensor(clipped)}, {"ratio_max": torch.tensor(ratio_max)})


def test_sums_add_and_maxima_do_not():
    total = merge([part(1.0, 10, 2.0, 1.5), part(0.5, 30, 1.0, 3.0), part(0.25, 0, 0.0, 0.0)])
    assert (total.loss.item(), total.count) == (1.75, 40)
    assert not total.loss.requires_grad
    assert means(total) == pytest.approx({"clip": 3 / 40, "ratio_max": 3.0})


def test_a_metric_that_an_idle_rank_lacks_counts_nothing():
    total = merge([MetricSums(torch.tensor(0.0), 0), part(1.0, 4, 2.0, 1.5)])
    assert means(total) == pytest.approx({"clip": 0.5, "ratio_max": 1.5})


def test_nothing_counted_is_zero():
    assert means(part(0.0, 0, 0.0, 0.0)) == {"clip": 0.0, "ratio_max": 0.0}
