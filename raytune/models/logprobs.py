"""Forward passes that compute logits only where they are needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raytune.data.collate import Batch
from raytune.models.attention import block_diagonal_mask
from raytune.types import IGNORE_INDEX


def label_logits(forward: Callable[..., Any], head: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the positions whose next token carries a label.

    The language-model head is by far the widest layer, and prompts and padding need none of it: a hook hands it the
    labelled positions alone. Scaling and capping that some models apply after the head still happen.

    Args: forward: the (possibly wrapped) model. head: its output embedding. batch: B rows of T tokens.
    Returns: logits [N, V] and their labels [N], for the N labelled positions in row order.
    """
    targets = batch.labels[:, 1:]
    keep = torch.zeros_like(batch.labels, dtype=torch.bool)  # [B, T]
    keep[:, :-1] = targets != IGNORE_INDEX

    def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][keep], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        output = forward(
            input_ids=batch.input_ids,
            attention_mask=_attention_mask(batch, head),
            position_ids=batch.position_ids,
            use_cache=False,
        )
    finally:
        handle.remove()
    return output.logits, targets[keep[:, :-1]]


def _attention_mask(batch: Batch, head: nn.Module) -> Tensor | None:
    # Rows are padded on the right, where causal attention never looks: without packing no mask is needed at all,
    # and the attention kernels take their fast causal path.
    if batch.segment_ids is None:
        return None
    dtype = next(head.parameters()).dtype
    return block_diagonal_mask(batch.segment_ids, dtype)
