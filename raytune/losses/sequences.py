"""Tokens of a micro-batch and the answers they belong to, and what each token weighs in the loss.

Losses of reinforcement learning take the tokens that the policy produced as one flat row [N], whatever padding or
packing they came from. L = sum_t weight_t * loss_t / normaliser, where the normaliser counts the global batch.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "fixed"]
"""How tokens are averaged: every token alike (DAPO), every answer alike (GRPO), or sums over a fixed length (Dr.GRPO).

With losses [[1, 2, 3, 4], [10]]: token 20/5 = 4; sequence (2.5 + 10)/2 = 6.25; fixed length 1 (10 + 10)/2 = 10.
"""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Which answer each of N tokens belongs to.

    Args: index: [N] int64, in [0, count). count: answers S of the micro-batch, those without a token included.

    Example: Sequences(torch.tensor([0, 0, 0, 1]), 2)      # an answer of three tokens and one of one token
    """

    index: Tensor
    count: int

    def sums(self, values: Tensor) -> Tensor:
        """Sum [N] values per answer: [S]."""
        return values.new_zeros(self.count).index_add(0, self.index, values)

    def lengths(self) -> Tensor:
        """Tokens per answer: [S] int64."""
        return torch.bincount(self.index, minlength=self.count)

    def means(self, values: Tensor) -> Tensor:
        """Mean of [N] values per answer: [S]; 0 for an answer without tokens."""
        return self.sums(values) / self.lengths().clamp(min=1)

    def spread(self, values: Tensor) -> Tensor:
        """Give each token the [S] value of its answer: [N]."""
        return values[self.index]


def token_weights(
    sequences: Sequences, aggregation: Aggregation, *, fixed_length: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight of each token before the division by `normaliser`.

    Args: fixed_length: the constant L of "fixed", in tokens, the same for the whole run (max_new_tokens).
    Returns: [N].
    Source: Yu et al. 2025 (DAPO), section 3.3 for "token"; Shao et al. 2024 (GRPO), eq. 3 for "sequence"; Liu et al.
    2025 (Dr.GRPO) for "fixed".
    """
    match aggregation:
        case "token":
            return torch.ones(sequences.index.shape, dtype=dtype, device=sequences.index.device)
        case "sequence":
            return sequences.spread(1.0 / sequences.lengths().clamp(min=1).to(dtype))
        case "fixed":
            return torch.full(sequences.index.shape, 1.0 / fixed_length, dtype=dtype, device=sequences.index.device)


def normaliser(aggregation: Aggregation, *, num_tokens: int, num_sequences: int) -> int:
    """The divisor of a weighted sum: it counts the global batch of one optimizer step, over all ranks.

    Counted over a micro-batch it would make the gradient depend on how the batch was cut. At least 1: a step in which
    nothing can be scored has gradient 0, not NaN.

    Args: num_tokens: tokens the policy produced. num_sequences: answers, those without a token included.
    """
    return max(num_tokens if aggregation == "token" else num_sequences, 1)
