"""Losses of pre-training and supervised fine-tuning."""

from typing import Any

import torch
from torch import Tensor

from raytune.losses.reduce import LossSums

# Logits widened to float32 at once: small enough to stay in a core's cache, large enough to fill a GPU.
_WIDE_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> LossSums:
    """Next-token cross-entropy over positions that carry a label.

    Args: logits: [N, V], any float type; the loss is taken in float32, a few rows at a time. labels: [N], the token
    each position predicts. label_smoothing: share e of the target mass spread evenly over the vocabulary, 0 <= e < 1.
    Returns: sums over N tokens; the caller normalises.
    Source: Szegedy et al. 2016, section 7 (label smoothing): (1-e) * -log p[y] + e * mean_v(-log p[v]).
    """
    loss, correct = _CrossEntropy.apply(logits, labels, label_smoothing)  # type: ignore[misc]
    return LossSums(loss=loss, correct=correct, count=labels.numel())


class _CrossEntropy(torch.autograd.Function):
    """The sum of the losses; the gradient p - (1 - e) * onehot(y) - e / V is taken along in the forward pass.

    So the vocabulary-wide logits are read once and no float32 copy of them lives on, as it would in
    `cross_entropy(logits.float())` twice over.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        vocabulary = logits.shape[1]
        rows = max(_WIDE_VALUES[logits.device.type] // vocabulary, 1)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        correct = torch.zeros((), dtype=torch.int64, device=logits.device)
        grad = torch.empty_like(logits)  # untouched, and so without memory, in an evaluation
        for part, label, into in zip(logits.split(rows), labels.split(rows), grad.split(rows), strict=True):
            label = label[:, None]
            probs = torch.softmax(part, dim=-1, dtype=torch.float32)
            best, at = part.max(dim=-1, keepdim=True)
            # Of all probabilities the largest is the exact one: at least 1 / V, whatever the label's.
            log_z = best.float() - probs.gather(1, at).log()
            wanted = (1 - smoothing) * part.gather(1, label).float()
            if smoothing:
                wanted += smoothing * part.mean(dim=-1, keepdim=True, dtype=torch.float32)
                probs -= smoothing / vocabulary
            total += (log_z - wanted).sum(dtype=torch.float64)
            correct += (at == label).sum()
            if ctx.needs_input_grad[0]:
                into.copy_(probs.scatter_add_(1, label, torch.full_like(log_z, smoothing - 1)))
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(correct)
        return total.float(), correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None
