"""Prepared rows on disk: whole, moved, replaced, cleared away."""

import os
import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from raytune.data.inputs import find_inputs
from raytune.data.pipeline import BlockEncoder, make_plan
from raytune.data.prepared import PreparedData, begin_build, open_prepared, publish
from raytune.data.scan import index_file
from raytune.data.store import RowStore
from raytune.errors import DataError
from tests.helpers.prepared import alpaca, build, bytes_of, options_for, write_set
from tests.helpers.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def test_an_interrupted_build_is_never_picked_up(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(4))
    options = options_for(tmp_path, dataset="one")
    inputs = find_inputs(options)
    final = tmp_path / "cache" / "prepared" / "key"
    folder = begin_build(final)
    plan = make_plan(options, inputs, [index_file(file, options.cache) for file in inputs.files], folder)
    BlockEncoder(options, plan, folder, tokenizer).encode(0, 0)
    with pytest.raises(DataError, match="no prepared data"):
        open_prepared(final)
    with pytest.raises(DataError, match="no prepared data"):
        open_prepared(folder)


def test_abandoned_builds_are_cleared_away(tmp_path: Path) -> None:
    old, recent = begin_build(tmp_path / "key"), begin_build(tmp_path / "key")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    new = begin_build(tmp_path / "key")
    assert sorted(tmp_path.iterdir()) == sorted([recent, new])


def test_the_slower_of_two_builds_uses_the_faster_ones(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(3))
    options = options_for(tmp_path, dataset="one")
    first = build(options, tokenizer)
    inode = first.root.stat().st_ino
    second = build(options, tokenizer)
    assert second == first
    assert first.root.stat().st_ino == inode
    assert [path.name for path in first.root.parent.iterdir()] == [first.key]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(3))
    first = build(options_for(tmp_path, dataset="one"), tokenizer)
    store = RowStore.open(first.train or tmp_path)
    kept = store.row(0)["input_ids"]
    other = tmp_path / "other"
    other.mkdir()
    write_set(other, one=alpaca(5))
    second = build(options_for(other, dataset="one"), tokenizer)
    moved = publish(second.root, first.root, overwrite=True)
    assert len(RowStore.open(moved.train or tmp_path)) == 5
    assert str(tokenizer.decode(kept.tolist())).endswith("a0<|im_end|>\n")
    assert [path.name for path in first.root.parent.iterdir()] == [first.root.name]


def test_overwriting_the_same_rows_disturbs_nobody_but_mends_damage(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    write_set(tmp_path, one=alpaca(3))
    first = build(options_for(tmp_path, dataset="one"), tokenizer)
    wanted = bytes_of(first.root)
    inode = first.root.stat().st_ino
    for damaged in (False, True):
        if damaged:
            block = first.root / "train" / "block-00000.arrow"
            block.write_bytes(wanted["train/block-00000.arrow"][::-1])
        again = build(options_for(tmp_path, dataset="one", data_cache_dir=str(tmp_path / f"c{damaged}")), tokenizer)
        publish(again.root, first.root, overwrite=True)
        assert bytes_of(first.root) == wanted
        assert (first.root.stat().st_ino == inode) is not damaged


def test_moved_data_is_the_same_under_other_folders(tmp_path: Path) -> None:
    data = PreparedData(Path("/r"), "key", Path("/r/train"), {"": Path("/r/eval-01")})
    moved = data.moved(lambda path: tmp_path / path.name)
    assert (moved.train, moved.eval) == (tmp_path / "train", {"": tmp_path / "eval-01"})
