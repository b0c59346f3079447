"""Losses of pre-training and supervised fine-tuning."""

import torch
from torch import Tensor
from torch.nn import functional

from raytune.losses.reduce import LossSums


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> LossSums:
    """Next-token cross-entropy over positions that carry a label.

    Args: logits: [N, V], any float type; the loss is taken in float32. labels: [N], the token each position predicts.
    label_smoothing: share e of the target mass spread evenly over the vocabulary, 0 <= e < 1.
    Returns: sums over N tokens; the caller normalises.
    Source: Szegedy et al. 2016, section 7 (label smoothing): (1-e) * -log p[y] + e * mean_v(-log p[v]).
    """
    wide = logits.float()
    loss = functional.cross_entropy(wide, labels, reduction="sum", label_smoothing=label_smoothing)
    with torch.no_grad():
        correct = (wide.argmax(dim=-1) == labels).sum()
    return LossSums(loss=loss, correct=correct, count=labels.numel())
