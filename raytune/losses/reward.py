"""The reward model's loss: the chosen answer should score higher than the rejected one."""

from torch import Tensor
from torch.nn import functional

from raytune.losses.reduce import MetricSums


def pair_loss(chosen: Tensor, rejected: Tensor) -> MetricSums:
    """Bradley-Terry loss, -log sigmoid(chosen - rejected), summed over pairs; divide it by those of the global batch.

    Args: chosen, rejected: scores of the answers, each [P] for P pairs, float32 or wider.
    Returns: metrics per pair: accuracy (a tie is wrong), margin, chosen, rejected.
    Source: Ouyang et al. 2022, eq. 1.
    """
    gap = chosen - rejected
    loss = -functional.logsigmoid(gap)
    sums = {
        "accuracy": (gap > 0).sum().to(gap.dtype),
        "margin": gap.detach().sum(),
        "chosen": chosen.detach().sum(),
        "rejected": rejected.detach().sum(),
    }
    return MetricSums(loss.sum(), gap.numel(), sums)
