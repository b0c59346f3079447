"""Log-probabilities of given tokens and the entropy of their distributions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logits widened to float32 at once: small enough to stay in a core's cache, large enough to fill a GPU.
_WIDE_VALUES = {"cpu": 1 << 19, "cuda": 1 << 26}


class TokenScores(NamedTuple):
    """Args: logprobs, entropies: [N], in nats, float32 or wider."""

    logprobs: Tensor
    entropies: Tensor


def score_tokens(
    logits: Tensor, labels: Tensor, *, temperature: float = 1.0, train_entropy: bool = False
) -> TokenScores:
    """Log-probability of each label and entropy of the distribution that it was drawn from, a few rows at a time.

    The temperature belongs in: a rollout engine that samples at T draws from softmax(logits / T), and a ratio between
    that and the plain softmax is wrong from the first step.

    Of the vocabulary-wide numbers nothing but the probabilities is kept for the gradient, in the logits' own dtype, and
    only where a gradient is asked for; the gradient is made in their place.

    Args: logits: [N, V], any float type. labels: [N] int64. temperature: > 0. train_entropy: let a gradient flow
    through the entropies too. Differentiate the result once only.
    """
    return TokenScores(*_TokenScores.apply(logits, labels, temperature, train_entropy))


class _TokenScores(torch.autograd.Function):
    """Source of the gradients: with z = logits / T, p = softmax(z) and H the entropy,
    dlog p[y] / dz = onehot(y) - p and dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, temperature: float, train_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        rows = max(_WIDE_VALUES[logits.device.type] // logits.shape[1], 1)
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(labels.shape, dtype=wide, device=logits.device)
        entropies = torch.empty_like(logprobs)
        kept = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            scaled = logits[part].to(wide)
            if temperature != 1.0:
                scaled = scaled / temperature
            # One kernel where logsumexp and exp are five; the largest probability is never too small for its logarithm.
            probs = torch.softmax(scaled, dim=-1)
            log_z = scaled.amax(dim=-1) - probs.amax(dim=-1).log()
            logprobs[part] = scaled.gather(1, labels[part, None])[:, 0] - log_z
            entropies[part] = log_z - torch.linalg.vecdot(probs, scaled)
            if kept is not None:
                kept[part] = probs
        ctx.save_for_backward(labels, entropies)
        ctx.kept, ctx.temperature, ctx.rows = kept, temperature, rows
        if not train_entropy:
            ctx.mark_non_differentiable(entropies)
        ctx.train_entropy = train_entropy
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        labels, entropies = ctx.saved_tensors
        total, ctx.kept = ctx.kept, None
        if total is None:
            raise RuntimeError("token scores can be differentiated once: the gradient takes the probabilities' place")
        of_logprobs, of_entropies = (grad / ctx.temperature for grad in grads)
        for start in range(0, len(labels), ctx.rows):
            part = slice(start, start + ctx.rows)
            probs, up = total[part], of_logprobs[part, None]
            if ctx.train_entropy:
                wide = probs.to(up.dtype)
                pull = wide.log().nan_to_num_(neginf=0.0).add_(entropies[part, None]).mul_(of_entropies[part, None])
                probs.copy_(wide.mul_(-(pull + up)))
            else:
                probs.mul_(-up)
            probs.scatter_add_(1, labels[part, None], up.to(probs.dtype))
        return total, None, None, None
