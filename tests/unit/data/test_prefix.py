import numpy as np

from raytune.data.collate import collate, join
from raytune.data.prefix import Row, split_prefixes


def row(ids: list[int], *, first_label: int) -> Row:
    labels = [token if place >= first_label else -100 for place, token in enumerate(ids)]
    return {"input_ids": np.array(ids, dtype=np.int32), "labels": np.array(labels, dtype=np.int32)}


SYSTEM = list(range(100, 110))


def test_rows_that_begin_alike_share_a_piece():
    rows = [row([*SYSTEM, 7, 8, 9], first_label=12), row([*SYSTEM, 5, 6], first_label=11)]
    pieces, parents = split_prefixes(rows)
    assert parents == [0, 1, 1]
    assert [piece["input_ids"].tolist() for piece in pieces] == [SYSTEM, [5, 6], [7, 8, 9]]
    assert [piece["labels"].tolist() for piece in pieces] == [[-100] * 10, [-100, 6], [-100, -100, 9]]
    assert [piece["position_ids"].tolist() for piece in pieces] == [list(range(10)), [10, 11], [10, 11, 12]]


def test_the_token_before_the_first_label_is_not_shared():
    # Answers to one prompt differ from their first token on, which each must be predicted from a place of its own.
    prompt = list(range(50, 62))
    pieces, _ = split_prefixes([row([*prompt, 1, 2], first_label=12), row([*prompt, 3, 4], first_label=12)])
    assert pieces[0]["input_ids"].tolist() == prompt[:-1]
    assert [piece["labels"][:2].tolist() for piece in pieces[1:]] == [[-100, 1], [-100, 3]]


def test_a_row_joins_only_where_that_saves_tokens():
    # Three rows share 20 tokens, the fourth 8 of them: 2 * 20 saved is more than 3 * 8.
    long = [*SYSTEM, *range(200, 210)]
    rows = [row([*long, end, end, 1], first_label=22) for end in (1, 2, 3)]
    pieces, parents = split_prefixes([*rows, row([*SYSTEM[:8], 250, 251, 9], first_label=10)])
    assert parents == [0, 1, 1, 1, 0]
    assert pieces[0]["input_ids"].tolist() == long


def test_short_or_labelled_beginnings_stay():
    assert split_prefixes([row([1, 2, 3, 4, 5], first_label=4), row([1, 2, 3, 6, 7], first_label=4)])[1] == [0, 0]
    assert split_prefixes([row([*SYSTEM, 1], first_label=0), row([*SYSTEM, 2], first_label=0)])[1] == [0, 0]
    assert split_prefixes([row([*SYSTEM, 1], first_label=10)])[1] == [0]


def test_a_joined_batch_names_the_parents_and_counts_every_label():
    rows = [row([*SYSTEM, 7, 8, 9], first_label=12), row([*SYSTEM, 5, 6], first_label=11), row([1, 2], first_label=1)]
    batch = collate([join(rows, share_prefixes=True)], pad_id=0)
    assert batch.parents == [0, 0, 0, 2, 2]
    assert batch.segment_ids is not None
    assert batch.segment_ids[0].tolist() == [1] * 2 + [2] * 10 + [3] * 2 + [4] * 3 + [0] * 7
    assert batch.num_label_tokens == 3
