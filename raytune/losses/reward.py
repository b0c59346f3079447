"""The reward model's loss: the chosen answer should score higher than the rejected one."""

from torch import Tensor
from torch.nn import functional

from raytune.losses.reduce import MetricSums


def pair_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, center_coef: float = 0.0
) -> MetricSums:
    """Bradley-Terry loss, summed over pairs; divide it by the pairs of the global batch.

    -log sigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected)^2. The second term holds down the
    constant that the first leaves free.

    Args: chosen, rejected: scores of the answers, each [P] for P pairs, float32 or wider. margin: by how much the
    chosen one should win, [P] or one number, in score units.
    Returns: metrics per pair: accuracy (a tie is wrong), margin, chosen, rejected.
    Source: Ouyang et al. 2022, eq. 1; Touvron et al. 2023 (Llama 2), eq. 2 for the margin; Eisenstein et al. 2023,
    eq. 2 for the centre.
    """
    gap = chosen - rejected
    loss = -functional.logsigmoid(gap - margin)
    if center_coef:
        loss = loss + center_coef * (chosen + rejected).square()
    sums = {
        "accuracy": (gap > 0).sum().to(gap.dtype),
        "margin": gap.detach().sum(),
        "chosen": chosen.detach().sum(),
        "rejected": rejected.detach().sum(),
    }
    return MetricSums(loss.sum(), gap.numel(), sums)
