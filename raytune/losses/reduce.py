"""What a loss hands back: sums and counts, so that the caller can normalise over a whole global batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the labelled tokens of one micro-batch.

    Args: loss: summed loss, scalar with gradient, in nats. correct: labelled tokens whose argmax is the label.
    count: labelled tokens.
    """

    loss: Tensor
    correct: Tensor
    count: int
