"""Log-probabilities of given tokens and the entropy of their distributions."""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each label under the policy that samples at a temperature.

    The temperature belongs in: a rollout engine that samples at T draws from softmax(logits / T), and a ratio between
    that and the plain softmax is wrong from the first step.

    Args: logits: [N, V], any float type; float32 or wider inside. labels: [N] int64. temperature: > 0.
    Returns: [N], in nats.
    """
    wide = _wide(logits, temperature)
    return wide.gather(-1, labels[:, None])[:, 0] - torch.logsumexp(wide, dim=-1)


def token_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the next-token distribution at each position.

    Args: logits: [N, V], any float type, finite. temperature: > 0.
    Returns: [N], in nats, between 0 and log V.
    Source: Shannon entropy of a softmax: H = logsumexp(z) - sum_v p_v z_v.
    """
    wide = _wide(logits, temperature)
    return torch.logsumexp(wide, dim=-1) - (wide.softmax(dim=-1) * wide).sum(dim=-1)


def _wide(logits: Tensor, temperature: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1.0 else wide / temperature
