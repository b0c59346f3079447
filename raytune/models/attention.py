"""Attention inside packed rows: no sample sees another one."""

from typing import Any

import torch
from torch import Tensor

from raytune.models import segment_attention


def block_diagonal_mask(segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask in which a token sees itself and the earlier tokens of its own segment.

    It is additive because transformers hands a 4-D mask on as it is, and eager attention adds it to the scores;
    scaled_dot_product_attention takes either kind. Padding (segment 0) forms a segment of its own: a row with no
    open column would make softmax return NaN, which reaches real tokens as 0 * NaN.

    Args: segment_ids [B, T]: 1, 2, ... for the samples of a row, 0 for padding. dtype: of the attention scores.
    Returns: [B, 1, T, T], 0 where attention is allowed and the smallest number of `dtype` elsewhere.
    """
    length = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]  # [B, T, T]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~(same & causal), torch.finfo(dtype).min)[:, None]


def packed_attention(segment_ids: Tensor, *, dtype: torch.dtype, implementation: str | None) -> dict[str, Any]:
    """Keyword arguments of a transformers forward pass that keep the samples of packed rows [B, T] apart.

    Flash attention and our own take no mask but the borders of the flattened samples; everything else takes the mask.

    Args: dtype: of the attention scores. implementation: `model.config._attn_implementation`.
    """
    if implementation is None or not implementation.startswith(("flash_attention", segment_attention.NAME)):
        return {"attention_mask": block_diagonal_mask(segment_ids, dtype)}
    borders = segment_borders(segment_ids)
    longest = int((borders[1:] - borders[:-1]).max())
    return {
        "attention_mask": None,
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def segment_borders(segment_ids: Tensor) -> Tensor:
    """Where each segment of rows [B, T] begins in the flattened batch, and its end: int32 [S + 1]."""
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = starts.flatten().nonzero().flatten()
    return torch.cat([first, first.new_tensor([segment_ids.numel()])]).to(torch.int32)
