"""Attention inside packed rows: no sample sees another one."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from raytune.models import segment_attention
from raytune.models.segment_attention import Span


def block_diagonal_mask(segment_ids: Tensor, dtype: torch.dtype, parents: Sequence[int] | None = None) -> Tensor:
    """Additive mask in which a token sees itself and the earlier tokens of its own segment and of that one's parent.

    It is additive because transformers hands a 4-D mask on as it is, and eager attention adds it to the scores;
    scaled_dot_product_attention takes either kind. Padding (segment 0) forms a segment of its own: a row with no
    open column would make softmax return NaN, which reaches real tokens as 0 * NaN.

    Args: segment_ids [B, T]: 1, 2, ... for the samples of a row, 0 for padding. dtype: of the attention scores.
    parents: as in Batch.
    Returns: [B, 1, T, T], 0 where attention is allowed and the smallest number of `dtype` elsewhere.
    """
    length = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]  # [B, T, T]
    if parents is not None:
        parent = torch.tensor(parents, device=segment_ids.device)[segment_ids]
        same |= (parent[:, :, None] == segment_ids[:, None, :]) & (parent[:, :, None] > 0)
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=segment_ids.device)
    return mask.masked_fill_(~(same & causal), torch.finfo(dtype).min)[:, None]


def packed_attention(
    segment_ids: Tensor, *, dtype: torch.dtype, implementation: str | None, parents: Sequence[int] | None = None
) -> dict[str, Any]:
    """Keyword arguments of a transformers forward pass that keep the samples of packed rows [B, T] apart.

    Flash attention takes no mask but the borders of the flattened samples, our own their spans; everything else takes
    the mask.

    Args: dtype: of the attention scores. implementation: `model.config._attn_implementation`. parents: as in Batch.
    """
    if implementation == segment_attention.NAME:
        return {"attention_mask": None, "spans": segment_spans(segment_ids, parents)}
    if implementation is None or not implementation.startswith("flash_attention"):
        return {"attention_mask": block_diagonal_mask(segment_ids, dtype, parents)}
    if parents is not None:
        raise ValueError("flash attention cannot let samples share a prefix")
    borders = segment_borders(segment_ids)
    longest = int((borders[1:] - borders[:-1]).max())
    return {
        "attention_mask": None,
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def segment_spans(segment_ids: Tensor, parents: Sequence[int] | None) -> list[Span]:
    """The segments of rows [B, T] in the flattened batch; with `parents`, which need B = 1, each with its prefix."""
    borders = segment_borders(segment_ids).tolist()
    spans = [Span(start, end) for start, end in pairwise(borders)]
    if parents is None:
        return spans
    places = {int(segment_ids[0, span.start]): span for span in spans}
    before = [places.get(parents[number]) if parents[number] else None for number in places]
    return [
        span if prefix is None else Span(span.start, span.end, prefix.start, prefix.end)
        for span, prefix in zip(spans, before, strict=True)
    ]


def segment_borders(segment_ids: Tensor) -> Tensor:
    """Where each segment of rows [B, T] begins in the flattened batch, and its end: int32 [S + 1]."""
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = starts.flatten().nonzero().flatten()
    return torch.cat([first, first.new_tensor([segment_ids.numel()])]).to(torch.int32)
