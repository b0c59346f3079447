import math

import pytest
import torch

from raytune.losses.tokens import score_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_equals_the_library_softmax(temperature):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 9), torch.randint(9, (6,))
    table = torch.log_softmax(logits.double() / temperature, dim=-1)
    found = score_tokens(logits, labels, temperature=temperature)
    assert found.logprobs.tolist() == pytest.approx(
        [table[i, label].item() for i, label in enumerate(labels)], abs=1e-6
    )
    expected = torch.distributions.Categorical(logits=logits.double() / temperature).entropy()
    assert found.entropies.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_uniform_and_certain():
    first = torch.tensor([0])
    assert score_tokens(torch.zeros(1, 50), first).entropies.item() == pytest.approx(math.log(50), rel=1e-6)
    sure = score_tokens(torch.tensor([[100.0, 0.0, 0.0]]), first)
    assert sure.entropies.item() == pytest.approx(0.0, abs=1e-6)
    assert sure.logprobs.item() == 0.0


@pytest.mark.parametrize("train_entropy", [False, True])
@pytest.mark.parametrize(("count", "vocabulary"), [(0, 7), (1, 7), (300, 4000)], ids=str)
def test_scores_of_one_pass_and_their_gradient_are_those_of_the_definitions(count, vocabulary, train_entropy):
    # 300 rows of 4,000 numbers are more than one part.
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(count, vocabulary, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(vocabulary, (count,), generator=generator)
    weights = torch.randn(2, count, generator=generator, dtype=torch.float64)
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = score_tokens(one, labels, temperature=0.7, train_entropy=train_entropy)
    table = torch.log_softmax(two / 0.7, dim=-1)
    expected = table.gather(1, labels[:, None])[:, 0], -(table.exp() * table).sum(dim=-1)
    torch.testing.assert_close(tuple(found), expected)
    pull = weights[1] if train_entropy else torch.zeros(count)
    (found.logprobs * weights[0] + found.entropies * pull).sum().backward()
    (expected[0] * weights[0] + expected[1] * pull).sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0])
def test_scores_in_float32_are_those_of_a_large_vocabulary(spread):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(64, 49152, generator=generator) * spread
    labels = torch.randint(49152, (64,), generator=generator)
    table = torch.log_softmax(logits.double(), dim=-1)
    found = score_tokens(logits, labels)
    chosen, entropies = table.gather(1, labels[:, None])[:, 0], -(table.exp() * table).sum(dim=-1)
    torch.testing.assert_close(found.logprobs.double(), chosen, rtol=1e-6, atol=1e-5)
    # The difference of two numbers as large as the logits, here up to 140, each a sum over the vocabulary.
    torch.testing.assert_close(found.entropies.double(), entropies, rtol=0, atol=1e-4)


def test_a_second_gradient_of_the_one_pass_is_refused():
    logits = torch.randn(2, 3, requires_grad=True)
    total = score_tokens(logits, torch.tensor([0, 1])).logprobs.sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        total.backward()


def test_scores_of_bfloat16_logits_are_taken_in_float32():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    found = score_tokens(logits, torch.tensor([2]))
    assert found.logprobs.dtype == torch.float32
    assert found.logprobs.item() == pytest.approx(-math.log(1 + math.exp(-1) + math.exp(-2)), rel=1e-6)
