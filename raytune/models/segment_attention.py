"""Causal attention on a CPU, a few short samples or a block of queries of a long one at a time.

Rows are joined without padding, so most of a dense [T, T] score matrix would be masked away: by the borders between
samples and by causality. Here queries meet only the keys they may see: those of their own sample, and of the prefix
that the sample may share with others. The query heads of one key head are stacked instead of copying the keys.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "raytune_segments"
# Queries of one product. Shorter blocks waste less above the diagonal but make products too small for the cores.
_BLOCK = 128
# Short samples share a product while padding makes them no longer than so many times their tokens, all together,
_PADDED = 1.5
# and while they have no more tokens than this: of each query and key a product holds the score.
_SHARED = 1024
# As transformers' source shows, their layers hand the attention function a scale, and a window if the config has one.
_PLAIN_MODELS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


class Span(NamedTuple):
    """The tokens start ... end - 1 of a flattened batch, which see each other causally, and the prefix before them.

    Example: Span(30, 90, 0, 30)      # the answer of one sample to a question, tokens 0 to 29, that others share
    """

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0

    @property
    def length(self) -> int:
        """Tokens without the prefix."""
        return self.end - self.start

    @property
    def prefix(self) -> int:
        """Tokens of the prefix."""
        return self.prefix_end - self.prefix_start


def register() -> None:
    """Make the implementation known to transformers, for `model.set_attn_implementation(NAME)`."""
    AttentionInterface.register(NAME, segment_attention)
    # Without an entry of its own transformers would drop a mask of padding without a word.
    AttentionMaskInterface.register(NAME, _refuse_padding)


def serves(model: Any) -> bool:
    """Whether every attention layer of `model` is plain: causal over all earlier tokens, no caps, sinks or dropout."""
    settings = model.config.get_text_config().to_dict()
    layers = set(settings.get("layer_types") or ["full_attention"])
    windowed = settings.get("sliding_window") is not None and settings.get("use_sliding_window", True)
    return (
        settings["model_type"] in _PLAIN_MODELS
        and layers == {"full_attention"}
        and not windowed
        and not settings.get("attention_dropout")
    )


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    spans: Sequence[Span] | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function.

    Args: query [B, H, T, D], key and value [B, K, T, D] with H a multiple of K. spans: the samples of the flattened
    batch, without gaps; absent, every row is one sample (padding on the right sees, but is not seen).
    Returns: [B, T, H, D].
    """
    if attention_mask is not None or dropout:
        raise ValueError("this attention knows causality and the borders of samples, no other mask and no dropout")
    batch, _, length, _ = query.shape
    if key.shape[2] != length:
        raise ValueError("this attention is for training: it has no use for a cache of earlier keys")
    if spans is None:
        return _attend(query, key, value, scaling, [Span(0, length)]).transpose(1, 2), None
    query, key, value = (part.transpose(0, 1).flatten(1, 2)[None] for part in (query, key, value))  # [1, H, B * T, D]
    output = _attend(query, key, value, scaling, spans)
    return output[0].transpose(0, 1).unflatten(0, (batch, length)), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, spans: Sequence[Span]) -> Tensor:
    """Under autocast queries and keys may come in float32 (rotary embeddings) and values in the narrower type."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    query, key, value = (part.to(dtype) for part in (query, key, value))
    # The gradient is taken outside of autocast; the products here must be of the same types as there.
    with torch.autocast(kind, enabled=False):
        return _SegmentAttention.apply(query, key, value, scaling, spans)  # type: ignore[return-value]


class _Piece(NamedTuple):
    """Queries of one product: of S samples of at most one block each, or of one block of a longer sample.

    Args: spans: without gaps between them, with the same prefix; a longer sample's ends with the block. first: query.
    slots: places of the tokens among samples that are padded to the longest; None where there is no padding.
    """

    spans: tuple[Span, ...]
    first: int
    slots: Tensor | None = None

    @property
    def queries(self) -> slice:
        """Places of the queries in the flattened batch."""
        return slice(self.first, self.spans[-1].end)

    @property
    def keys(self) -> slice:
        """Places of the keys, without the prefix."""
        return slice(self.spans[0].start, self.spans[-1].end)

    @property
    def prefix(self) -> slice:
        """Places of the prefix."""
        return slice(self.spans[0].prefix_start, self.spans[0].prefix_end)

    @property
    def seen_by_first(self) -> int:
        """Keys before the first query of each sample."""
        return self.spans[0].prefix + self.first - self.spans[0].start

    def apart(self, joined: Tensor) -> Tensor:
        """[N, H, t, D] of the samples in a row -> [N * S, H, longest, D], with zeros behind the shorter ones."""
        if len(self.spans) == 1:
            return joined
        if self.slots is not None:
            number, heads, _, size = joined.shape
            longest = max(span.length for span in self.spans)
            padded = joined.new_zeros(number, heads, len(self.spans) * longest, size)
            padded[:, :, self.slots] = joined
            joined = padded
        return joined.unflatten(2, (len(self.spans), -1)).transpose(1, 2).flatten(0, 1)

    def joined(self, apart: Tensor) -> Tensor:
        """What `apart` took apart."""
        if len(self.spans) == 1:
            return apart
        padded = apart.unflatten(0, (-1, len(self.spans))).transpose(1, 2).flatten(2, 3)
        return padded if self.slots is None else padded[:, :, self.slots]


# Every layer of a forward pass asks for the same.
@lru_cache(maxsize=4)
def _pieces(spans: tuple[Span, ...]) -> list[_Piece]:
    """Everything that has to be computed, in order."""
    return [piece for together in _runs(spans) for piece in _cut(together)]


def _runs(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Samples that share a product, and single ones of any length."""
    run: list[Span] = []
    longest = tokens = 0
    for span in spans:
        longest, tokens = max(longest, span.length), tokens + span.length
        padded = longest * (len(run) + 1)
        brief = longest <= _BLOCK and padded <= min(_PADDED * tokens, _SHARED)
        siblings = run and (span.prefix_start, span.prefix_end) == (run[0].prefix_start, run[0].prefix_end)
        if run and not (brief and siblings):
            yield run
            run, longest, tokens = [], span.length, span.length
        run.append(span)
    if run:
        yield run


def _cut(run: Sequence[Span]) -> Iterator[_Piece]:
    if len(run) == 1:
        (span,) = run
        for first in range(span.start, span.end, _BLOCK):
            yield _Piece((span._replace(end=min(first + _BLOCK, span.end)),), first)
        return
    lengths = [span.length for span in run]
    longest = max(lengths)
    slots = None
    if min(lengths) < longest:
        slots = torch.cat([torch.arange(length) + sample * longest for sample, length in enumerate(lengths)])
    yield _Piece(tuple(run), run[0].start, slots)


def _seen(keys: Tensor, piece: _Piece) -> Tensor:
    """What the last queries of a piece see of keys or values [N, 1, T, D]: [N * S, prefix and span, D]."""
    own = piece.apart(keys[:, :, piece.keys])[:, 0]
    prefix = keys[:, 0, piece.prefix]
    return torch.cat([prefix.repeat_interleave(len(piece.spans), dim=0), own], dim=1) if prefix.shape[1] else own


def _add_seen(total: Tensor, piece: _Piece, part: Tensor) -> None:
    """Add what `_seen` took, [N * S, prefix and span, D], where it was taken from."""
    prefix = piece.spans[0].prefix
    if prefix:
        total[:, 0, piece.prefix] += part[:, :prefix].unflatten(0, (-1, len(piece.spans))).sum(1)
    total[:, :, piece.keys] += piece.joined(part[:, None, prefix:])


def _refuse_padding(*_args: Any, attention_mask: Tensor | None = None, **_kwargs: Any) -> None:
    """transformers' mask function: plain causal rows need no mask, and there is none for padding on the left."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("this attention takes no mask of padding; set another attention to generate")


class _SegmentAttention(torch.autograd.Function):
    """softmax(scale * q k^T) v in pieces; the probabilities are kept for the gradient.

    Source of the gradients: the chain rule; with P = softmax(S), S = scale * q k^T and g = dL/dout:
    dv = P^T g, dP = g v^T, dS = P * (dP - rowsum(dP * P)), dq = scale * dS k, dk = scale * dS^T q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, spans: Sequence[Span]) -> Tensor:
        q, k, v = _stack(query * scale, key), _stack(key, key), _stack(value, key)
        out = torch.empty_like(q)
        kept = []
        pieces = _pieces(tuple(spans))
        for piece in pieces:
            scores = _product(piece.apart(q[:, :, piece.queries]), _seen(k, piece).transpose(1, 2))
            probs = _causal_softmax(scores, diagonal=piece.seen_by_first)
            out[:, :, piece.queries] = piece.joined(_product(probs, _seen(v, piece)))
            kept.append(probs)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.pieces = scale, pieces
        return out.reshape(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        shape = grads[0].shape
        grad = grads[0].reshape(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for piece, probs in zip(ctx.pieces, kept, strict=True):
            mine = piece.apart(grad[:, :, piece.queries])
            _add_seen(grad_v, piece, _transposed_product(probs, mine))
            grad_probs = _product(mine, _seen(v, piece).transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
            grad_q[:, :, piece.queries] = piece.joined(_product(grad_scores, _seen(k, piece)))
            _add_seen(grad_k, piece, _transposed_product(grad_scores, piece.apart(q[:, :, piece.queries])))
        batch, heads = shape[0], k.shape[0] // shape[0]
        narrow = (batch, heads, *k.shape[2:])
        return grad_q.mul_(ctx.scale).reshape(shape), grad_k.reshape(narrow), grad_v.reshape(narrow), None, None


def _stack(heads: Tensor, key: Tensor) -> Tensor:
    """[B, H, T, D] -> [B * K, H / K, T, D]: the heads of one key head together."""
    batch, num_keys, length, size = key.shape
    return heads.reshape(batch * num_keys, heads.shape[1] // num_keys, length, size)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """[N, G, t, a] x [N, a, b] -> [N, G, t, b]; the G heads are further rows of one product."""
    number, group, rows, width = left.shape
    return torch.bmm(left.reshape(number, group * rows, width), right).view(number, group, rows, -1)


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """[N, G, t, a]^T x [N, G, t, b] -> [N, a, b], summed over the G heads."""
    number, _, _, width = left.shape
    return torch.bmm(left.reshape(number, -1, width).transpose(1, 2), right.reshape(number, -1, right.shape[-1]))


def _causal_softmax(scores: Tensor, *, diagonal: int) -> Tensor:
    """Softmax of [N, G, t, s] scores where query i sees keys up to i + diagonal; in place on `scores`."""
    rows, width = scores.shape[-2:]
    hidden = torch.ones(rows, width - diagonal, dtype=torch.bool, device=scores.device).triu_(1)
    scores[..., diagonal:].masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1)
