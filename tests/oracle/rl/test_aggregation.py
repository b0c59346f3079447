"""How tokens are averaged, on the example that tells the ways apart."""

import pytest
import torch

from raytune.losses.sequences import Aggregation, Sequences, normaliser, token_weights

LOSSES = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
SEQUENCES = Sequences(torch.tensor([0, 0, 0, 0, 1]), 2)


def aggregate(aggregation: Aggregation, fixed_length: int = 1, copies: int = 1) -> float:
    index = torch.cat([SEQUENCES.index + 2 * i for i in range(copies)])
    sequences = Sequences(index, 2 * copies)
    weights = token_weights(sequences, aggregation, fixed_length=fixed_length)
    divisor = normaliser(aggregation, num_tokens=5 * copies, num_sequences=2 * copies)
    return float((LOSSES.repeat(copies) * weights).sum() / divisor)


# token 20/5; sequence (10/4 + 10/1)/2; fixed: (10 + 10)/2 answers over the length
@pytest.mark.parametrize(
    ("aggregation", "length", "expected"),
    [("token", 1, 4.0), ("sequence", 1, 6.25), ("fixed", 1, 10.0), ("fixed", 4, 2.5)],
)
def test_the_published_example(aggregation, length, expected):
    assert aggregate(aggregation, length) == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_doubling_the_batch_does_not_double_the_loss(aggregation):
    assert aggregate(aggregation, 4, copies=2) == pytest.approx(aggregate(aggregation, 4))


def test_an_answer_without_tokens_counts_as_an_answer():
    sequences = Sequences(torch.tensor([0, 2, 2]), 3)
    assert sequences.lengths().tolist() == [1, 0, 2]
    assert sequences.means(torch.tensor([3.0, 1.0, 2.0])).tolist() == [3.0, 0.0, 1.5]
    assert token_weights(sequences, "sequence").tolist() == [1.0, 0.5, 0.5]


def test_an_empty_batch_has_a_divisor():
    assert [normaliser(kind, num_tokens=0, num_sequences=0) for kind in ("token", "sequence", "fixed")] == [1, 1, 1]


def test_answers_may_be_interleaved():
    sequences = Sequences(torch.tensor([1, 0, 1, 0]), 2)
    assert sequences.sums(torch.tensor([1.0, 10.0, 2.0, 20.0])).tolist() == [30.0, 3.0]
    assert sequences.spread(torch.tensor([5.0, 7.0])).tolist() == [7.0, 5.0, 7.0, 5.0]
