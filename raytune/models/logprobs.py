"""Forward passes that compute logits only where they are needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from raytune.data.collate import Batch
from raytune.models.attention import packed_attention
from raytune.types import IGNORE_INDEX


def label_logits(forward: Callable[..., Any], head: nn.Module, config: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the positions whose next token carries a label.

    The language-model head is by far the widest layer, and prompts and padding need none of it: a hook hands it the
    labelled positions alone. Scaling and capping that some models apply after the head still happen.

    Args: forward: the (possibly wrapped) model. head: its output embedding. config: its transformers
    config. batch: B rows of T tokens.
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
            position_ids=batch.position_ids,
            use_cache=False,
            **_attention(batch, head, config),
        )
    finally:
        handle.remove()
    return output.logits, targets[keep[:, :-1]]


def _attention(batch: Batch, head: nn.Module, config: Any) -> dict[str, Any]:
    # Rows are padded on the right, where causal attention never looks: without packing no mask is needed at all,
    # and the attention kernels take their fast causal path.
    if batch.segment_ids is None:
        return {"attention_mask": None}
    dtype = next(head.parameters()).dtype
    implementation = config._attn_implementation
    return packed_attention(batch.segment_ids, dtype=dtype, implementation=implementation, parents=batch.parents)
