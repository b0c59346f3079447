import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from raytune.config.load import load_config
from raytune.config.model import ModelConfig
from raytune.data.inputs import DataOptions, cache_key, cache_root, find_inputs, tokenizer_digest
from raytune.data.pipeline import BlockEncoder, make_plan
from raytune.data.prepared import PreparedData, begin_build, open_prepared, publish
from raytune.data.reports import Reports
from raytune.data.scan import index_file
from raytune.data.selection import Extent, hold_out, select
from raytune.data.store import RowStore
from raytune.errors import DataError
from tests.helpers.tiny import tiny_tokenizer

COLUMNS = ("input_ids", "labels", "position_ids", "attention_mask")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def alpaca(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(start, start + count)]


def write_set(folder: Path, **sets: list[Any]) -> None:
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    entries = {name: {"file_name": f"{name}.json"} for name in sets}
    (folder / "dataset_info.json").write_text(json.dumps(entries))


def options_for(folder: Path, **keys: Any) -> DataOptions:
    flat = {
        "model_name_or_path": "unused",
        "template": "chatml",
        "dataset_dir": str(folder),
        "data_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        **keys,
    }
    return DataOptions.of(load_config(flat).config)


def build(options: DataOptions, tokenizer: PreTrainedTokenizerBase, *, backwards: bool = False) -> PreparedData:
    """Everything that prepare_data does, in this process."""
    inputs = find_inputs(options)
    key = cache_key(options, inputs, "tiny")
    final = options.cache / "prepared" / key
    folder = begin_build(final)
    plan = make_plan(options, inputs, [index_file(file, options.cache) for file in inputs.files], folder)
    encoder = BlockEncoder(options, plan, folder, tokenizer)
    reports = Reports(plan, skip_invalid=options.dataio.skip_invalid)
    for split, number in reversed(plan.blocks) if backwards else plan.blocks:
        reports.add(encoder.encode(split, number))
    reports.close(folder, key)
    return publish(folder, final)


def answers(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The trained text of each row."""
    store = RowStore.open(path)
    rows = (store.row(number) for number in range(len(store)))
    trained = (row["labels"][row["labels"] != -100].tolist() for row in rows)
    return [str(tokenizer.decode(labels)).removesuffix("<|im_end|>\n") for labels in trained]


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_rows_keep_their_order_over_sets_and_blocks(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(5), two=alpaca(4, start=5))
    options = options_for(tmp_path, dataset="one,two", preprocessing_batch_size=4)
    done = build(options, tokenizer)
    assert done.train is not None
    assert answers(done.train, tokenizer) == [f"a{n}" for n in range(9)]
    assert [block.rows for block in RowStore.open(done.train).manifest.blocks] == [4, 4, 1]
    assert done.eval == {}


def test_ids_and_labels_are_those_of_the_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=[{"instruction": "say", "input": "it", "output": "now"}])
    done = build(options_for(tmp_path, dataset="one"), tokenizer)
    assert done.train is not None
    row = RowStore.open(done.train).row(0)
    before = "<|im_start|>user\nsay\nit<|im_end|>\n<|im_start|>assistant\n"
    source = tokenizer(before, add_special_tokens=False)["input_ids"]
    target = tokenizer("now<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert row["input_ids"].tolist() == source + target
    assert row["labels"].tolist() == [-100] * len(source) + target


def test_the_order_of_the_blocks_does_not_change_a_byte(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    results = []
    for backwards in (False, True):
        folder = tmp_path / str(backwards)
        folder.mkdir()
        write_set(folder, one=alpaca(30))
        keys = {"dataset": "one", "preprocessing_batch_size": 7, "val_size": 0.2, "packing": True, "cutoff_len": 200}
        results.append(bytes_of(build(options_for(folder, **keys), tokenizer, backwards=backwards).root))
    assert results[0] == results[1]
    assert any(name.startswith("eval-") for name in results[0])


def test_packed_rows_have_positions_and_segments(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(3))
    done = build(options_for(tmp_path, dataset="one", packing=True, cutoff_len=200), tokenizer)
    assert done.train is not None
    store = RowStore.open(done.train)
    row = store.row(0)
    assert sorted(row) == sorted(COLUMNS)
    third = len(row["input_ids"]) // 3
    assert len(store) == 1
    assert row["position_ids"].tolist() == [*range(third)] * 3
    assert row["attention_mask"].tolist() == [1] * third + [2] * third + [3] * third


def test_pretraining_text_from_a_file_path(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (tmp_path / "a.txt").write_text("abc\ndefg\n")
    options = options_for(tmp_path, dataset=str(tmp_path / "a.txt"), stage="pt", cutoff_len=4)
    done = build(options, tokenizer)
    assert done.train is not None
    store = RowStore.open(done.train)
    text = "".join(str(tokenizer.decode(store.row(number)["labels"].tolist())) for number in range(len(store)))
    assert text == "abc<|im_end|>defg<|im_end|>"
    assert store.lengths.tolist() == [4, 4, 1]


def test_max_samples_takes_the_first_rows_of_each_set(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(5), two=alpaca(5, start=10), held=alpaca(5, start=20))
    options = options_for(tmp_path, dataset="one,two", eval_dataset="held", max_samples=2)
    done = build(options, tokenizer)
    assert done.train is not None
    assert answers(done.train, tokenizer) == ["a0", "a1", "a10", "a11"]
    assert answers(done.eval[""], tokenizer) == ["a20", "a21"]


def test_evaluation_sets_one_by_one(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(2), x=alpaca(2, start=5), y=alpaca(1, start=8))
    keys = {"dataset": "one", "eval_dataset": "x,y"}
    each = build(options_for(tmp_path, eval_on_each_dataset=True, **keys), tokenizer)
    assert {name: answers(path, tokenizer) for name, path in each.eval.items()} == {"x": ["a5", "a6"], "y": ["a8"]}
    together = build(options_for(tmp_path, **keys), tokenizer)
    assert {name: answers(path, tokenizer) for name, path in together.eval.items()} == {"": ["a5", "a6", "a8"]}


# The rows that datasets' train_test_split picks from 10 rows with seed 42.
@pytest.mark.parametrize(("val_size", "picked"), [(2, [5, 6]), (0.5, [5, 6, 0, 7, 3]), (1, [5])])
def test_the_split_is_that_of_datasets(val_size: float, picked: list[int]) -> None:
    train, held = hold_out(np.arange(10), val_size, seed=42, compat=True)
    assert held.tolist() == picked
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(10))
    ordered, chosen = hold_out(np.arange(10), val_size, seed=42, compat=False)
    assert chosen.tolist() == sorted(picked)
    assert ordered.tolist() == sorted(train.tolist())


def test_the_split_equals_the_library(tmp_path: Path) -> None:
    import datasets

    numbers = datasets.Dataset.from_dict({"n": list(range(57))})
    split: Any = numbers.train_test_split(test_size=0.1, seed=7)
    train, held = hold_out(np.arange(57), 0.1, seed=7, compat=True)
    assert [train.tolist(), held.tolist()] == [split[name].to_dict()["n"] for name in ("train", "test")]


def test_a_split_that_leaves_no_training_row_is_an_error() -> None:
    with pytest.raises(DataError, match="val_size 10 holds back 10 of 10 rows"):
        hold_out(np.arange(10), 10, seed=0, compat=False)


def test_val_size_of_the_whole_pipeline(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=alpaca(10))
    done = build(options_for(tmp_path, dataset="one", val_size=2, seed=42), tokenizer)
    assert done.train is not None
    assert answers(done.eval[""], tokenizer) == ["a5", "a6"]
    assert answers(done.train, tokenizer) == [f"a{n}" for n in range(10) if n not in (5, 6)]


@pytest.mark.parametrize("wanted", [3, 10, 25])
def test_num_samples_uses_every_row_before_it_repeats_one(wanted: int) -> None:
    rows = select([Extent("one", start=100, rows=10, num_samples=wanted)], max_samples=None, seed=1).tolist()
    assert len(rows) == wanted
    assert len(set(rows[:10])) == min(wanted, 10)
    assert set(rows) <= set(range(100, 110))
    assert rows == select([Extent("one", start=100, rows=10, num_samples=wanted)], max_samples=None, seed=1).tolist()


def test_broken_rows_of_all_blocks_are_listed_at_once(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[Any] = alpaca(40)
    for number in range(1, 40, 2):
        rows[number] = {"instruction": "q", "input": "", "output": number}
    rows[38]["output"] = None
    rows[36]["output"] = None
    rows[2] = {"instruction": "q"}
    write_set(tmp_path, one=rows)
    with pytest.raises(DataError) as caught:
        build(options_for(tmp_path, dataset="one", preprocessing_batch_size=8), tokenizer, backwards=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "23 rows break their format (of 40):"
    assert lines[1] == "  one.json row 2: 'output' is the number 1, not text"
    assert lines[2].startswith("  one.json row 3: there is no column 'output'")
    broken = sorted([*range(2, 41, 2), 3, 37, 39])
    assert [line.split()[2] for line in lines[1:21]] == [f"{number}:" for number in broken[:20]]
    assert lines[21] == "  ... and 3 more"
    assert "skip_invalid: true" in lines[22]
    assert list((tmp_path / "cache" / "prepared").glob("[!.]*")) == []


def test_skip_invalid_drops_and_counts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[Any] = alpaca(5)
    rows[1]["output"] = ""
    rows[3]["output"] = None
    write_set(tmp_path, one=rows)
    done = build(options_for(tmp_path, dataset="one", skip_invalid=True), tokenizer)
    assert done.train is not None
    assert answers(done.train, tokenizer) == ["a0", "a2", "a4"]
    assert RowStore.open(done.train).manifest.dropped == 2


def test_nothing_left_names_the_rules(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=[{"instruction": "q", "input": "", "output": ""}] * 3)
    with pytest.raises(DataError, match=r"no training row is left: of 3 rows all are broken: 3x 'output' is empty"):
        build(options_for(tmp_path, dataset="one", skip_invalid=True), tokenizer)


def test_truncated_rows_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    write_set(tmp_path, one=[*alpaca(2), {"instruction": "long " * 50, "input": "", "output": "x"}])
    done = build(options_for(tmp_path, dataset="one", cutoff_len=64), tokenizer)
    assert done.train is not None
    manifest = RowStore.open(done.train).manifest
    assert (manifest.rows, manifest.truncated) == (3, 1)


def test_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set is named"):
        find_inputs(options_for(tmp_path))


def key_of(folder: Path, tokenizer: str = "t", **keys: Any) -> str:
    options = options_for(folder, **{"dataset": "one", **keys})
    return cache_key(options, find_inputs(options), tokenizer)


CHANGES: list[Mapping[str, Any]] = [
    {"cutoff_len": 64},
    {"train_on_prompt": True},
    {"mask_history": True},
    {"packing": True},
    {"neat_packing": True},
    {"preprocessing_batch_size": 10},
    {"max_samples": 1},
    {"val_size": 0.5},
    {"skip_invalid": True},
    {"template": "qwen3"},
    {"default_system": "Be brief."},
    {"compat": "llamafactory"},
    {"stage": "pt"},
    {"eval_dataset": "two"},
    {"dataset": "two"},
    {"dataset": "one,two"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_key_changes_with_what_changes_a_row(tmp_path: Path, change: Mapping[str, Any]) -> None:
    write_set(tmp_path, one=alpaca(2), two=alpaca(3))
    assert key_of(tmp_path, **change) != key_of(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"preprocessing_num_workers": 3}, {"learning_rate": 1e-3}, {"seed": 7}, {"overwrite_cache": True}],
    ids=str,
)
def test_the_key_does_not_change_with_anything_else(tmp_path: Path, change: Mapping[str, Any]) -> None:
    write_set(tmp_path, one=alpaca(2))
    assert key_of(tmp_path, **change) == key_of(tmp_path)


def test_the_key_follows_content_entry_and_tokenizer(tmp_path: Path) -> None:
    write_set(tmp_path, one=alpaca(2))
    first = key_of(tmp_path)
    assert key_of(tmp_path, tokenizer="other") != first
    (tmp_path / "dataset_info.json").write_text('{"one": {"file_name": "one.json", "columns": {"prompt": "input"}}}')
    assert key_of(tmp_path) != first
    write_set(tmp_path, one=alpaca(2))
    assert key_of(tmp_path) == first
    write_set(tmp_path, one=alpaca(2, start=1))
    assert key_of(tmp_path) != first


def test_the_seed_counts_where_rows_are_drawn(tmp_path: Path) -> None:
    write_set(tmp_path, one=alpaca(4))
    assert key_of(tmp_path, val_size=2, seed=1) != key_of(tmp_path, val_size=2, seed=2)


def test_the_tokenizer_digest_covers_all_but_weights(tmp_path: Path) -> None:
    model = ModelConfig(model_name_or_path="m")
    tiny_tokenizer().save_pretrained(tmp_path)
    first = tokenizer_digest(tmp_path, model)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert tokenizer_digest(tmp_path, model) == first
    assert tokenizer_digest(tmp_path, ModelConfig(model_name_or_path="m", add_tokens=("new",))) != first
    (tmp_path / "chat_template.jinja").write_text("other")
    assert tokenizer_digest(tmp_path, model) != first


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def root(**keys: str) -> Path:
        return cache_root(load_config({"model_name_or_path": "m", "output_dir": "o", **keys}).config)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert root(data_cache_dir=str(tmp_path / "a"), storage_path=str(tmp_path / "b")) == tmp_path / "a"
    assert root(storage_path=str(tmp_path / "b")) == tmp_path / "b" / "cache"
    assert root() == tmp_path / "xdg" / "raytune" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert root() == Path.home() / ".cache" / "raytune" / "data"


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
