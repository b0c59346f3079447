"""Attention in blocks against the dense formula, written with one masked score matrix."""

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from raytune.models import segment_attention
from raytune.models.segment_attention import Span
from tests.helpers.tiny import tiny_model

SCALE = 0.17


def heads(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of 6 heads, keys and values of 2, as a model hands them over: [B, H, T, D] views of [B, T, H, D]."""
    generator = torch.Generator().manual_seed(length)
    made = [torch.randn(batch, length, count, 16, generator=generator) for count in (6, 2, 2)]
    query, key, value = (part.transpose(1, 2).requires_grad_() for part in made)
    return query, key, value


def dense(query: Tensor, key: Tensor, value: Tensor, sample: Tensor) -> Tensor:
    """softmax(scale q k^T) v over tokens of the same sample that are not later. sample [B, T]."""
    key, value = (part.repeat_interleave(3, dim=1) for part in (key, value))
    scores = SCALE * query @ key.transpose(2, 3)
    seen = (sample[:, :, None] == sample[:, None, :]).tril()[:, None]
    return (torch.where(seen, scores, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(
    ("batch", "borders"),
    [
        (1, None),
        (3, None),
        (1, [0, 100, 101, 300]),
        (1, [0, 150, 300]),
        (1, [0, 60, 100, 160, 280, 300]),
        (1, [0, 50, 100, 150, 200, 250, 300]),
        (2, [0, 40, 300, 420, 600]),
    ],
    ids=str,
)
def test_outputs_and_gradients_equal_the_dense_formula(batch: int, borders: list[int] | None) -> None:
    length = 300  # more than two blocks of queries, the last one short
    query, key, value = heads(batch, length)
    ends = [length * (row + 1) for row in range(batch)] if borders is None else borders[1:]
    sample = torch.bucketize(torch.arange(batch * length), torch.tensor(ends), right=True).view(batch, length)
    expected = dense(query, key, value, sample)
    spans = None if borders is None else [Span(start, end) for start, end in pairwise(borders)]
    found, _ = segment_attention.segment_attention(torch.nn.Identity(), query, key, value, None, SCALE, spans=spans)
    assert_equal(found, expected, (query, key, value))


def assert_equal(found: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, inputs, grad)
    for mine, theirs in zip(torch.autograd.grad(found, inputs, grad), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [(40, 110), (50, 50, 50), (30, 45, 30, 45), (10, 100, 12, 20)], ids=str)
def test_samples_that_share_a_prefix_equal_samples_that_repeat_it(lengths: tuple[int, ...]) -> None:
    query, key, value = heads(1, 300)
    prefix, ends = range(140), list(accumulate(lengths, initial=140))
    answers = [range(start, end) for start, end in pairwise(ends)]
    other = range(ends[-1], 300)
    spans = [Span(0, 140), *(Span(a.start, a.stop, 0, 140) for a in answers), Span(other.start, 300)]
    found, _ = segment_attention.segment_attention(torch.nn.Identity(), query, key, value, None, SCALE, spans=spans)
    parts = []
    for start, rest in ((prefix, ()), *((prefix, answer) for answer in answers), (other, ())):
        places = torch.tensor([*start, *rest])
        alone = dense(query[:, :, places], key[:, :, places], value[:, :, places], torch.zeros(1, len(places)))
        parts.append(alone[:, len(start) :] if rest else alone)
    assert_equal(found, torch.cat(parts, dim=1), (query, key, value))


def test_a_product_is_of_short_siblings_or_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of the queries by their heads, samples and tokens: siblings together, where padding costs little."""
    sizes = []
    product = segment_attention._product

    def noted(left: Tensor, right: Tensor) -> Tensor:
        sizes.append(tuple(left.shape[:3]))
        return product(left, right)

    monkeypatch.setattr(segment_attention, "_product", noted)
    ends = [60, 100, 140, 165, 185, 190, 290, 300]
    spans = [Span(0, 60), *(Span(start, end, 0, 60) for start, end in pairwise(ends))]
    segment_attention.segment_attention(torch.nn.Identity(), *heads(1, 300), None, SCALE, spans=spans)
    # 60 tokens; 40, 40, 25 and 20 together, which 5 more would pad to 200; 5; 100; 10. Two key heads.
    assert sizes[::2] == [(2, 3, 60), (8, 3, 40), (2, 3, 5), (2, 3, 100), (2, 3, 10)]


def test_a_product_of_siblings_has_a_most_of_tokens() -> None:
    """Scores are of each query and key: those of all answers to a prompt of any number would not fit."""
    spans = [Span(0, 60), *(Span(60 + 100 * n, 160 + 100 * n, 0, 60) for n in range(25))]
    pieces = segment_attention._pieces(tuple(spans))
    assert [len(piece.spans) for piece in pieces] == [1, 10, 10, 5]


def test_bfloat16_stays_near_float32() -> None:
    wide = heads(1, 300)
    expected = dense(*wide, torch.zeros(1, 300))
    query, key, value = (part.detach().bfloat16() for part in wide)
    found, _ = segment_attention.segment_attention(torch.nn.Identity(), query, key, value, None, SCALE)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_another_mask_is_refused() -> None:
    query, key, value = heads(1, 8)
    with pytest.raises(ValueError, match="no other mask"):
        segment_attention.segment_attention(torch.nn.Identity(), query, key, value, torch.zeros(1, 1, 8, 8), SCALE)


def test_types_that_autocast_mixes_give_gradients() -> None:
    wide = heads(1, 300)
    query, key, value = (part.detach().requires_grad_() for part in wide)
    grad = torch.randn(1, 300, 6, 16, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(dense(*wide, torch.zeros(1, 300)), wide, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = value.bfloat16()  # rotary embeddings leave queries and keys in float32
        found, _ = segment_attention.segment_attention(torch.nn.Identity(), query, key, narrow, None, SCALE)
    assert found.dtype == torch.bfloat16
    for mine, theirs in zip(torch.autograd.grad(found, (query, key, value), grad.bfloat16()), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.999


def test_padding_on_the_left_and_caches_are_refused() -> None:
    segment_attention.register()
    model = tiny_model()
    model.set_attn_implementation(segment_attention.NAME)
    ids = torch.tensor([[2, 2, 5, 9, 13]])
    with pytest.raises(ValueError, match="mask of padding"):
        model(ids, attention_mask=torch.tensor([[0, 0, 1, 1, 1]]))
    with pytest.raises(ValueError, match="for training"):
        model.generate(ids, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(
    ("model_type", "settings", "served"),
    [
        ("llama", {}, True),
        ("llama", {"attention_dropout": 0.1}, False),
        ("mistral", {"sliding_window": 64}, False),
        ("mistral", {"sliding_window": None}, True),
        ("qwen2", {"use_sliding_window": False}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, False),
        ("gemma2", {}, False),
    ],
    ids=str,
)
def test_serves_plain_attention_only(model_type: str, settings: dict[str, object], served: bool) -> None:
    small = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 64}
    more = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **small, **more, **settings)
    assert segment_attention.serves(AutoModelForCausalLM.from_config(config)) is served


def test_padding_on_the_right_changes_no_logit() -> None:
    segment_attention.register()
    model = tiny_model()
    ids = torch.tensor([[5, 9, 13, 200, 7, 2, 2, 2], [11, 22, 33, 44, 55, 66, 77, 88]])
    expected = [model(ids[:1, :5]).logits[0], model(ids[1:]).logits[0]]
    model.set_attn_implementation(segment_attention.NAME)
    found = model(ids, attention_mask=None).logits
    torch.testing.assert_close(found[0, :5], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
