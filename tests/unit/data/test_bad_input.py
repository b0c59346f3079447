"""What a user does wrong with data, and what they are told: file, row, rule and remedy, all broken rows at once.

Each case goes the way of `raytune data show`: a config, the tokenizer, the rows that would be trained on.
"""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from raytune.config.load import load_config
from raytune.data.prepared import begin_build, open_prepared
from raytune.data.show import first_rows
from raytune.data.store import RowStore
from raytune.errors import DataError, RaytuneError
from tests.helpers.prepared import alpaca, answers, build, bytes_of, options_for, write_set
from tests.helpers.tiny import tiny_tokenizer

GOOD = {"instruction": "q", "input": "", "output": "a"}
TALK = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
PAIRS = {"ranking": True, "columns": {"prompt": "q", "chosen": "chosen", "rejected": "rejected"}}
REMEDY = "Mend the file, or set skip_invalid: true to drop such rows."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def show(folder: Path, tokenizer: PreTrainedTokenizerBase, **keys: Any) -> list[dict[str, Any]]:
    """The rows of the data set 'set'."""
    flat = {
        "model_name_or_path": "unused",
        "template": "chatml",
        "dataset": "set",
        "dataset_dir": str(folder),
        "data_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        **keys,
    }
    return list(first_rows(load_config(flat).config, tokenizer))


def told(folder: Path, tokenizer: PreTrainedTokenizerBase, **keys: Any) -> str:
    """What a user is told instead of rows, in the words on their screen."""
    with pytest.raises(RaytuneError) as caught:
        show(folder, tokenizer, **keys)
    assert isinstance(caught.value, DataError)
    return str(caught.value)


def put(folder: Path, content: str | bytes, name: str = "set.json", entry: Mapping[str, Any] | None = None) -> Path:
    """Write a file and the entry 'set' that names it."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    entries = {"set": {"file_name": name, **(entry or {})}}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return path


def lines_of(rows: list[Any]) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def talk(*roles: str) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": "x"} for role in roles]}


ROWS: list[tuple[str, dict[str, Any], Any, dict[str, Any], str]] = [
    ("a missing column", {}, {"instruction": "q", "answer": "a"}, {}, "there is no column 'output' (the row has "),
    ("null for an answer", {}, {**GOOD, "output": None}, {}, "'output' is null, not text"),
    ("a number for an answer", {}, {**GOOD, "output": 42}, {}, "'output' is the number 42, not text"),
    ("a list for a question", {}, {**GOOD, "instruction": ["q"]}, {}, "'instruction' is a list, not text"),
    ("an empty answer", {}, {**GOOD, "output": ""}, {}, "'output' is empty; every sft row needs an answer"),
    ("a row that is a list", {}, [GOOD], {}, "the row is not a JSON object {column: value}"),
    ("broken JSON", {}, '{"instruction": "q", "output": }', {}, "not valid JSON: Expecting value at character 32 of"),
    ("JSON cut off", {}, '{"instruction": "q", "outp', {}, "not valid JSON: Unterminated string"),
    (
        "two answers",
        TALK,
        talk("human", "gpt", "gpt"),
        {},
        "message 3 is of role assistant; in an alternating conversa",
    ),
    ("the answer first", TALK, talk("gpt", "human"), {}, "message 1 is of role assistant; in an alternating conversat"),
    ("no answer", TALK, talk("human"), {}, "the conversation ends with "),
    (
        "an unknown role",
        TALK,
        talk("human", "bard"),
        {},
        "message 2 is of the unknown role 'bard'; the data set's tags",
    ),
    (
        "content that is null",
        TALK,
        {"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "x"}]},
        {},
        "message 1 (human): 'value' is null, not text",
    ),
    ("text for messages", TALK, {"conversations": "hello"}, {}, "'conversations' must be a list of messages, not text"),
    (
        "a placeholder without its image",
        {"columns": {"prompt": "instruction", "response": "output", "images": "images"}},
        {**GOOD, "instruction": "<image><image>?", "images": []},
        {},
        "the text has 2 <image> but 'images' is empty",
    ),
    ("an answer missing of a pair", PAIRS, {"q": "q", "chosen": "a"}, {"stage": "rm"}, "there is no column 'rejected'"),
    (
        "one answer of a pair null",
        PAIRS,
        {"q": "q", "chosen": "a", "rejected": None},
        {"stage": "rm"},
        "'rejected' is null",
    ),
]


@pytest.mark.parametrize(("entry", "row", "keys", "rule"), [case[1:] for case in ROWS], ids=[case[0] for case in ROWS])
def test_a_broken_row_is_told_by_file_number_rule_and_remedy(
    entry: dict[str, Any], row: Any, keys: dict[str, Any], rule: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    good = {"q": "q", "chosen": "a", "rejected": "b"} if entry == PAIRS else talk("human", "gpt")
    good = {**GOOD, "images": []} if entry not in (PAIRS, TALK) else good
    put(tmp_path, lines_of([good, row, good]), "set.jsonl", entry)
    lines = told(tmp_path, tokenizer, **keys).splitlines()
    assert lines[0] == "1 row breaks its format (of 3):"
    assert lines[1].startswith(f"  set.jsonl row 2: {rule}")
    assert lines[2:] == [REMEDY]
    assert len(show(tmp_path, tokenizer, skip_invalid=True, **keys)) == 2


def test_the_first_twenty_broken_rows_are_told_and_the_others_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    put(tmp_path, lines_of([GOOD, *(["{"] * 15), *([{**GOOD, "output": 1}] * 15)]), "set.jsonl")
    lines = told(tmp_path, tokenizer).splitlines()
    assert lines[0] == "30 rows break their format (of 31):"
    assert [line.split(":")[0] for line in lines[1:21]] == [f"  set.jsonl row {number}" for number in range(2, 22)]
    assert lines[21:] == ["  ... and 10 more", REMEDY]


def test_broken_json_in_the_middle_of_a_list_is_told_by_line_row_and_the_text_around(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = put(tmp_path, '[{"instruction": "q", "output": "a"},\n{"instruction": "q", "output": },\n{"a": 1}]')
    said = told(tmp_path, tokenizer)
    assert said.startswith("not valid JSON: Expecting value near ")
    assert '"output": },' in said
    assert f"({path} line 2, row 2). Mend it there." in said
    assert ".jsonl" in said


@pytest.mark.parametrize("name", ["set.json", "set.jsonl", "set.csv", "set.txt"])
def test_an_empty_file(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = put(tmp_path, "", name)
    assert told(tmp_path, tokenizer) == f"the file is empty ({path}). Name a file that holds rows."


@pytest.mark.parametrize(("name", "content"), [("set.json", "[]"), ("set.csv", "instruction,output\n")])
def test_a_file_without_a_row(name: str, content: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = put(tmp_path, content, name)
    assert told(tmp_path, tokenizer) == f"the file holds no row ({path}). Name a file that holds rows."


@pytest.mark.parametrize(
    ("name", "content", "what", "remedy"),
    [
        ("set.json", b"\x89PNG\r\n\x1a\n\0\0", "not a UTF-8 text file but a binary one: it begins with", "Name a text"),
        ("set.csv", b"PK\x03\x04....", "a zip archive or an Excel workbook", "save the sheet as CSV"),
        ("set.jsonl", gzip.compress(b"{}", mtime=0), "a gzip file", "end in .gz"),
        ("set.parquet", b"{}", "not a readable parquet file", "let its name say what it is"),
        ("set.arrow", b"{}", "not a readable arrow file", "let its name say what it is"),
        ("set.jsonl.gz", b"{}", "not a readable gzip file", "Fetch it again"),
    ],
)
def test_a_binary_file_and_one_of_another_kind(
    name: str, content: bytes, what: str, remedy: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = put(tmp_path, content, name)
    said = told(tmp_path, tokenizer)
    assert what in said
    assert f"({path})" in said
    assert remedy in said


def test_columns_of_mixed_types(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    outputs = ["a", 1, None, True, ["a"], {"a": 1}, "b"]
    put(tmp_path, json.dumps([{**GOOD, "output": output} for output in outputs]))
    lines = told(tmp_path, tokenizer).splitlines()
    kinds = ["the number 1", "null", "the boolean true", "a list", "an object"]
    assert lines[1:6] == [f"  set.json row {row}: 'output' is {kind}, not text" for row, kind in enumerate(kinds, 2)]


def test_a_parquet_column_of_numbers(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    put(tmp_path, "", "set.parquet")
    pq.write_table(pa.table({"instruction": ["q"], "output": pa.array([7], pa.int64())}), tmp_path / "set.parquet")
    assert "\n  set.parquet row 1: 'output' is the number 7, not text\n" in told(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("entry", "row", "stage", "rule"),
    [
        (PAIRS, {"q": "q", "chosen": "a", "rejected": "b"}, "sft", "has chosen and rejected answers, which stage sft"),
        ({}, GOOD, "rm", "has no pairs of answers; its entry needs ranking: true"),
        ({}, GOOD, "dpo", "has no pairs of answers; its entry needs ranking: true"),
        ({}, GOOD, "kto", "has no tags; its entry needs a column kto_tag"),
        (
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "good"}},
            {**GOOD, "good": True},
            "sft",
            "has a kto tag, which stage sft cannot train on",
        ),
    ],
)
def test_a_data_set_of_another_stage(
    entry: dict[str, Any], row: Any, stage: str, rule: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    put(tmp_path, lines_of([row]), "set.jsonl", entry)
    said = told(tmp_path, tokenizer, stage=stage)
    assert f"data set 'set' {rule}" in said
    assert "set.jsonl" in said


def test_an_unknown_template_is_told_with_the_near_names(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    put(tmp_path, lines_of([GOOD]), "set.jsonl")
    said = told(tmp_path, tokenizer, template="chatmll")
    assert said.startswith("unknown template 'chatmll'")
    assert "Did you mean chatml" in said


def test_a_tokenizer_without_the_special_tokens_of_the_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    put(tmp_path, lines_of([GOOD]), "set.jsonl")
    said = told(tmp_path, tokenizer, template="llama3")
    assert said.startswith("template 'llama3' does not fit the tokenizer of ")
    assert "<|start_header_id|>" in said
    assert "Use template: auto" in said


@pytest.mark.parametrize("name", ["set.jsonl", "set.json", "set.parquet"])
def test_a_row_of_50_megabytes_is_refused_within_bounded_memory(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [GOOD, {**GOOD, "output": "long " * 10_500_000}, GOOD]
    if name == "set.parquet":
        put(tmp_path, "", name)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        put(tmp_path, lines_of(rows) if name == "set.jsonl" else json.dumps(rows), name)
    del rows
    tracemalloc.start()
    try:
        said = told(tmp_path, tokenizer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    line = said.splitlines()[1]
    assert line.startswith(f"  {name} row 2: it has 52,500,")
    assert line.endswith(" bytes; rows of more than 8,388,608 are not read: split it")
    assert said.splitlines()[2] == REMEDY
    assert peak < 250e6
    assert len(show(tmp_path, tokenizer, skip_invalid=True)) == 2


def test_a_data_set_that_is_not_there_is_told_with_the_near_names(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    put(tmp_path, lines_of([GOOD]), "set.jsonl")
    said = told(tmp_path, tokenizer, dataset="sets")
    assert said == f"data set 'sets' is not defined ({tmp_path / 'dataset_info.json'}). Did you mean 'set'?"


KILLED = """
import sys, time
from pathlib import Path
from raytune.data.pipeline import BlockEncoder
from tests.helpers.prepared import build, options_for
from tests.helpers.tiny import tiny_tokenizer

encode = BlockEncoder.encode

def slow(self, split, number):
    if number == 2:
        print("two blocks are written", flush=True)
        time.sleep(600)
    return encode(self, split, number)

BlockEncoder.encode = slow
build(options_for(Path(sys.argv[1]), dataset="one", preprocessing_batch_size=2), tiny_tokenizer())
"""


def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    write_set(tmp_path, one=alpaca(7))
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "two blocks are written\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    (left,) = (tmp_path / "cache" / "prepared").iterdir()
    assert sorted(path.name for path in (left / "train").iterdir()) == ["block-00000.arrow", "block-00001.arrow"]
    with pytest.raises(DataError, match="holds no prepared data"):
        open_prepared(left)
    options = options_for(tmp_path, dataset="one", preprocessing_batch_size=2)
    done = build(options, tokenizer)
    assert done.train is not None
    assert answers(done.train, tokenizer) == [f"a{number}" for number in range(7)]
    RowStore.open(done.train).verify()
    undisturbed = tmp_path / "other"
    undisturbed.mkdir()
    write_set(undisturbed, one=alpaca(7))
    other = build(options_for(undisturbed, dataset="one", preprocessing_batch_size=2), tokenizer)
    assert bytes_of(done.root) == bytes_of(other.root)
    days_ago = time.time() - 2 * 24 * 3600
    os.utime(left, (days_ago, days_ago))
    begin_build(done.root)
    assert not left.exists()
