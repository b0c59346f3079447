"""The stream of prompts: its order, its end, and that a number is enough to go on."""

from pathlib import Path

import numpy as np
import pytest

from raytune.config.train import TrainConfig
from raytune.data.batches import epoch_order
from raytune.data.store import Manifest, RowStore, to_table, write_block, write_manifest
from raytune.errors import DataError
from raytune.stages.prompts import (
    HELD_OUT,
    PromptCursor,
    PromptSource,
    held_out_prompts,
    planned_steps,
    prompt_limit,
)
from raytune.types import Encoded

ROWS = 7


@pytest.fixture
def store(tmp_path: Path) -> RowStore:
    """Row n has n + 1 tokens, all n, and says so in its columns; two blocks."""
    rows = [Encoded([n] * (n + 1), [], columns=f'{{"solution": {n}}}') for n in range(ROWS)]
    blocks = tuple(write_block(tmp_path, n, to_table(part)) for n, part in enumerate((rows[:4], rows[4:])))
    write_manifest(tmp_path, Manifest("key", blocks))
    return RowStore.open(tmp_path)


def test_each_epoch_shows_each_row_in_the_order_of_supervised_training(store: RowStore) -> None:
    drawn = PromptSource(store, seed=5).draw(2 * ROWS)
    orders = [epoch_order(np.arange(1, ROWS + 1), epoch=epoch, seed=5, shuffle=True) for epoch in (0, 1)]
    assert [prompt.row for prompt in drawn] == np.concatenate(orders).tolist()
    assert [prompt.number for prompt in drawn] == list(range(2 * ROWS))
    for prompt in drawn:
        assert prompt.ids.tolist() == [prompt.row] * (prompt.row + 1)
        assert prompt.ids.dtype == np.int32
        assert prompt.columns == {"solution": prompt.row}


def test_without_shuffling_the_set_keeps_its_order(store: RowStore) -> None:
    drawn = PromptSource(store, seed=5, shuffle=False).draw(ROWS + 2)
    assert [prompt.row for prompt in drawn] == [*range(ROWS), 0, 1]


@pytest.mark.parametrize("stop", [0, 3, ROWS, ROWS + 1])
def test_a_resumed_source_goes_on_where_it_stopped(store: RowStore, stop: int) -> None:
    whole = [prompt.row for prompt in PromptSource(store, seed=1).draw(20)]
    first = PromptSource(store, seed=1)
    head = [prompt.row for prompt in first.draw(stop)]
    tail = [prompt.row for prompt in PromptSource(store, seed=1, cursor=first.cursor).draw(20 - stop)]
    assert head + tail == whole
    assert first.cursor == PromptCursor(stop)


def test_how_many_are_drawn_at_a_time_changes_nothing(store: RowStore) -> None:
    source = PromptSource(store, seed=1)
    single = [source.draw(1)[0].row for _ in range(2 * ROWS)]
    assert single == [prompt.row for prompt in PromptSource(store, seed=1).draw(2 * ROWS)]


def test_prompts_given_back_come_first_and_are_kept_in_the_cursor(store: RowStore) -> None:
    source = PromptSource(store, seed=1)
    first = source.draw(6)
    source.give_back([4, 1])
    assert source.cursor == PromptCursor(6, (1, 4))
    again = PromptSource(store, seed=1, cursor=source.cursor).draw(3)
    assert [prompt.number for prompt in again] == [1, 4, 6]
    assert [prompt.row for prompt in again[:2]] == [first[1].row, first[4].row]
    with pytest.raises(ValueError, match="prompt 6 was never drawn"):
        source.give_back([6])


def test_a_finite_stream_ends(store: RowStore) -> None:
    source = PromptSource(store, seed=1, limit=10)
    assert source.left == 10
    assert len(source.draw(8)) == 8
    assert len(source.draw(8)) == 2
    assert source.draw(8) == []
    source.give_back([9])
    assert source.left == 1
    assert [prompt.number for prompt in source.draw(8)] == [9]
    assert source.epoch == pytest.approx(10 / ROWS)


def test_steps_and_epochs_end_a_run() -> None:
    assert prompt_limit(TrainConfig(num_train_epochs=1.5), ROWS) == 11
    assert planned_steps(TrainConfig(num_train_epochs=1.5), ROWS, 4) == 3
    assert prompt_limit(TrainConfig(max_steps=9), ROWS) is None
    assert planned_steps(TrainConfig(max_steps=9), ROWS, 4) == 9


def test_held_out_prompts_are_no_prompts_of_training(store: RowStore) -> None:
    held = held_out_prompts(store)
    assert [prompt.row for prompt in held] == list(range(ROWS))
    assert min(prompt.number for prompt in held) == HELD_OUT
    assert len(held_out_prompts(store, limit=2)) == 2
    assert len(held_out_prompts(store, limit=100)) == ROWS


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest("key", ()))
    with pytest.raises(DataError, match="prompt set is empty"):
        PromptSource(RowStore.open(tmp_path), seed=1)
