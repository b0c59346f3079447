"""How many tokens a row may have, and how a prompt and its answer share them."""

from raytune.config.data import DataConfig


def row_length(data: DataConfig, compat: bool) -> int:
    """Tokens a row may have: cutoff_len, one less in LLaMA-Factory where packing is asked for by name."""
    return data.cutoff_len - 1 if compat and (data.packing or data.neat_packing) else data.cutoff_len


def split_budget(source: int, target: int, budget: int) -> tuple[int, int]:
    """Share `budget` tokens between a source and a target of these lengths.

    A part of less than half the budget keeps all of its tokens, else both shrink in proportion.
    Source: LLaMA-Factory's infer_seqlen.
    """
    if 2 * target < budget:
        allowed = budget
    elif 2 * source < budget:
        allowed = budget - source
    else:
        allowed = int(budget * target / (source + target))
    kept = min(allowed, target)
    return min(max(budget - kept, 0), source), kept
