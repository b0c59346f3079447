"""pass@k: how often one of k answers would be right, estimated from n >= k answers."""

import math
from collections.abc import Sequence


def pass_at_k(num_answers: int, num_right: int, k: int) -> float:
    """The chance that k answers, drawn without replacement from these, hold a right one: 1 - C(n - c, k) / C(n, k).

    Unbiased for the chance that k new answers of the same policy do.

    Args: num_answers: n >= k answers to one prompt. num_right: c of them are right.
    Errors: ValueError unless 1 <= k <= n and 0 <= c <= n.
    Source: Chen et al. 2021, eq. 1, in its product form.

    Example: pass_at_k(4, 1, 2) == 0.5
    """
    if not (1 <= k <= num_answers and 0 <= num_right <= num_answers):
        raise ValueError(f"pass@{k} of {num_right} right answers among {num_answers}")
    if num_answers - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(num_answers - num_right + 1, num_answers + 1))


def mean_pass_at_k(rewards: Sequence[Sequence[float]], k: int, *, right: float = 1.0) -> float:
    """Mean of pass@k over prompts.

    Answers without a reward (NaN) do not count, neither do prompts with fewer than k others.

    Args: rewards: of each prompt's answers. right: the least reward of a right answer.
    Returns: NaN if no prompt counts.
    """
    known = [[reward for reward in group if not math.isnan(reward)] for group in rewards]
    rates = [pass_at_k(len(group), sum(one >= right for one in group), k) for group in known if len(group) >= k]
    return math.fsum(rates) / len(rates) if rates else math.nan


def powers_up_to(num_answers: int) -> tuple[int, ...]:
    """The k of a validation with so many answers a prompt: 1, 2, 4, ... and the number itself."""
    powers = [1 << bit for bit in range(num_answers.bit_length()) if 1 << bit < num_answers]
    return (*powers, num_answers) if num_answers else ()
