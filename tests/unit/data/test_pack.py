"""The knapsack's table of values, and what the default packing does otherwise than LLaMA-Factory's."""

import pytest

from raytune.data.pack import fill_knapsacks, pack_rows
from raytune.errors import DataError
from raytune.types import Encoded


# Values that LLaMA-Factory's greedy_knapsack returned.
@pytest.mark.parametrize(
    ("lengths", "capacity", "groups"),
    [
        ([10, 20, 30, 40, 50], 60, [[50, 10], [40, 20], [30]]),
        ([5, 5, 5, 5], 10, [[5, 5], [5, 5]]),
        ([3, 9, 2, 7, 6, 4], 10, [[9], [7, 3], [6, 4], [2]]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 10, [[9, 1], [8, 2], [7, 3], [6, 4], [5]]),
        ([100], 100, [[100]]),
    ],
)
def test_knapsacks(lengths: list[int], capacity: int, groups: list[list[int]]) -> None:
    assert fill_knapsacks(lengths, capacity) == groups


def row(start: int, length: int, prompt: int = 1) -> Encoded:
    ids = list(range(start, start + length))
    return Encoded(ids, [-100] * prompt + ids[prompt:])


def test_default_uses_the_whole_row_and_stores_no_padding() -> None:
    packed = pack_rows([row(10, 3), row(20, 5), row(30, 4)], 8, 0)
    assert [made.input_ids for made in packed] == [[20, 21, 22, 23, 24, 10, 11, 12], [30, 31, 32, 33]]
    assert packed[0].attention_mask == [1, 1, 1, 1, 1, 2, 2, 2]
    assert packed[0].position_ids == [0, 1, 2, 3, 4, 0, 1, 2]
    assert packed[0].labels == [-100, 21, 22, 23, 24, -100, 11, 12]


def test_no_sample_is_trained_to_predict_the_next_ones_first_token() -> None:
    (packed,) = pack_rows([row(10, 3, prompt=0), row(20, 4, prompt=0)], 8, 0)
    assert packed.labels == [-100, 21, 22, 23, -100, 11, 12]


def test_compat_pads_to_the_row_and_holds_one_token_less() -> None:
    packed = pack_rows([row(10, 3), row(20, 4)], 8, 0, compat=True)
    assert [made.input_ids for made in packed] == [[20, 21, 22, 23, 10, 11, 12, 0]]
    assert packed[0].attention_mask == [1] * 8
    assert len(pack_rows([row(10, 4), row(20, 4)], 8, 0, compat=True)) == 2
    assert pack_rows([row(10, 3)], 5, 0, neat=True, compat=True)[0].attention_mask == [1, 1, 1, 0, 0]


def test_every_token_comes_back_once() -> None:
    rows = [row(100 * number, 1 + number * 7 % 13) for number in range(50)]
    packed = pack_rows(rows, 16, 0)
    assert sorted(token for made in packed for token in made.input_ids) == sorted(
        token for made in rows for token in made.input_ids
    )
    assert all(len(made.input_ids) <= 16 for made in packed)


def test_row_longer_than_a_packed_one() -> None:
    with pytest.raises(DataError, match="row 1 of the block has 9 tokens, a packed row holds 8"):
        pack_rows([row(0, 3), row(0, 9)], 8, 0)
