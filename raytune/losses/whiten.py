"""Bring numbers to mean 0 and spread 1: over the tokens of a batch, or over all scores seen so far."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class WhitenRule:
    """Numbers in which systems differ.

    Args: ddof: 1 for the sample variance, 0 for the population's. eps: keeps the variance off 0, "add"ed to it or as
    its "floor". shift: take the mean away; otherwise it stays as it is, and only distances from it are scaled.
    """

    ddof: int = 1
    eps: float = 1e-8
    guard: Literal["add", "floor"] = "add"
    shift: bool = True


DEFAULT_WHITEN_RULE = WhitenRule()


def whiten(values: Tensor, mask: Tensor, *, rule: WhitenRule = DEFAULT_WHITEN_RULE) -> Tensor:
    """Bring the tokens under the mask to mean 0 and variance 1, over the whole batch.

    Equal numbers become exactly 0.

    Args: values: any shape, any float type. mask: the same shape, bool or 0/1; the rest is not read and becomes 0.
    Returns: float64, the shape of `values`.
    """
    keep = mask.bool()
    chosen = values[keep].double()
    if not chosen.numel():
        return torch.zeros_like(values, dtype=torch.float64)
    # Moments are taken relative to one of the numbers: equal numbers then have a mean of exactly 0.
    near = chosen - chosen[0]
    centred = near - near.mean()
    variance = centred.square().sum() / max(chosen.numel() - rule.ddof, 1)
    guarded = variance + rule.eps if rule.guard == "add" else variance.clamp(min=rule.eps)
    result = torch.zeros_like(values, dtype=torch.float64)
    result[keep] = centred * guarded.rsqrt() + (0.0 if rule.shift else chosen.mean())
    return result


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Mean and squared deviations of every score seen so far. It goes into checkpoints.

    Example: RunningMoments(count=64, mean=0.31, squares=12.8)      # standard deviation sqrt(12.8 / 63) = 0.45
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Sample standard deviation; 1 until there are two scores."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 1.0


def update_moments(moments: RunningMoments, scores: Tensor) -> RunningMoments:
    """Take another batch of scores [N] into account; unscorable ones (NaN, infinite) are left out.

    Source: Chan, Golub and LeVeque 1983: moments of two samples joined.
    """
    known = scores[scores.isfinite()].double()
    if not known.numel():
        return moments
    mean = float(known.mean())
    count, step = moments.count + known.numel(), mean - moments.mean
    squares = float((known - mean).square().sum()) + step**2 * moments.count * known.numel() / count
    return RunningMoments(count, moments.mean + step * known.numel() / count, moments.squares + squares)


def normalise_scores(scores: Tensor, moments: RunningMoments, *, eps: float = 1e-7) -> Tensor:
    """Scores [N] in units of the spread of all scores so far, [N] float64. Update the moments with them first."""
    return (scores.double() - moments.mean) / (moments.std + eps)
