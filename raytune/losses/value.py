"""The critic's loss: squared error against the returns, with the step from the old prediction bounded."""

import torch
from torch import Tensor

from raytune.losses.reduce import MetricSums


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip: float | None = 0.2
) -> MetricSums:
    """Weighted sum of half the squared error, the worse of the free and the clipped prediction.

    1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2). Divide it by `normaliser` over the global batch.

    Args: values: [N], with gradient. old_values: [N], when the experience was gathered. returns: [N] targets, reward
    units. weights: [N], from token_weights. clip: largest step, reward units; None for none.
    Returns: metrics per token: value, value_return, value_error (squared), value_return_squared, value_clip. Explained
    variance is 1 - mean value_error / (mean value_return_squared - mean value_return ^ 2).
    Source: Schulman et al. 2017, eq. 9, with the clip of OpenAI's reference implementation of PPO.
    """
    free = (values - returns).square()
    error = free
    if clip is not None:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(free, (bounded - returns).square())
    sums = {
        "value": values.detach().sum(),
        "value_return": returns.sum(),
        "value_return_squared": returns.square().sum(),
        "value_error": free.detach().sum(),
        "value_clip": (error > free).detach().sum().to(values.dtype),
    }
    return MetricSums((0.5 * error * weights).sum(), values.numel(), sums)
