import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytune.data import scan
from raytune.data.formats import InvalidRow
from raytune.data.registry import DatasetSpec, Source
from raytune.data.scan import index_file
from raytune.data.sources import Row, find_specs, list_files, open_rows
from raytune.errors import DataError

ROWS = [
    {"instruction": 'say "hi" [twice] {now}', "input": "", "output": "hi,\nhi"},
    {"instruction": "gr\u00fc\u00dfe \U0001f600 \\ end\\", "input": "x", "output": "\u4f60\u597d"},
    {"instruction": "third", "input": "y", "output": "last"},
]


def read_all(path: Path, cache: Path) -> list[Row | InvalidRow]:
    """All rows of a file or folder, each file's last row first, to see that any order can be read."""
    found: list[Row | InvalidRow] = []
    for file in list_files(DatasetSpec("set", Source("file", str(path)))):
        index, rows = index_file(file, cache)
        found += reversed(open_rows(file, index).read(list(reversed(range(rows)))))
    return found


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only))
    assert read_all(path, tmp_path / "cache") == ROWS


@pytest.mark.parametrize("window", range(1, 40, 3))
def test_a_json_list_read_through_a_small_window(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_WINDOW", window)
    path = write(tmp_path / "a.json", json.dumps(ROWS, ensure_ascii=False))
    assert read_all(path, tmp_path / "cache") == ROWS


def test_the_shared_json_list_equals_what_json_reads(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "alpaca_en_demo.json"
    assert read_all(path, tmp_path) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines_with_blank_lines_and_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    assert read_all(write(tmp_path / name, "\ufeff" + lines), tmp_path / "cache") == ROWS


def test_csv_with_commas_quotes_and_line_breaks_in_fields(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["instruction", "input", "output"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert read_all(tmp_path / "a.csv", tmp_path / "cache") == ROWS


def test_a_csv_row_of_another_width_is_invalid(tmp_path: Path) -> None:
    rows = read_all(write(tmp_path / "a.csv", "a,b\n1,2\n3\n"), tmp_path / "cache")
    assert rows[0] == {"a": "1", "b": "2"}
    assert isinstance(rows[1], InvalidRow)
    assert rows[1].rule == "it has 1 fields, the header has 2"


def test_text_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\r\n\ntwo words\n \nthree")
    assert read_all(path, tmp_path / "cache") == [{"text": "one"}, {"text": "two words"}, {"text": "three"}]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert read_all(tmp_path / "a.parquet", tmp_path / "cache") == ROWS


@pytest.mark.parametrize("kind", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams(tmp_path: Path, kind: type) -> None:
    table = pa.Table.from_pylist(ROWS)
    with kind(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert read_all(tmp_path / "a.arrow", tmp_path / "cache") == ROWS


def test_a_folder_is_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in (2, 0, 1):
        write(folder / f"part-{number}.jsonl", json.dumps(ROWS[number]))
    write(folder / ".hidden", "x")
    assert read_all(folder, tmp_path / "cache") == ROWS


def test_the_index_is_made_once_for_a_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS))
    read_all(path, tmp_path / "cache")
    path.rename(tmp_path / "b.json")
    monkeypatch.setattr(scan, "_make", lambda *_: pytest.fail("indexed again"))
    assert read_all(tmp_path / "b.json", tmp_path / "cache") == ROWS


def test_a_file_may_stand_in_the_place_of_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n")
    (spec,) = find_specs([str(path)], str(tmp_path / "no_registry"))
    assert (spec.columns.prompt, spec.columns.response) == ("text", None)
    assert [file.path for file in list_files(spec)] == [str(path)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "", r"empty.*a\.json"),
        ("a.json", " \n\n", r"empty.*a\.json"),
        ("a.json", "[]", r"no row.*a\.json"),
        ("a.csv", "a,b\n", r"no row.*a\.csv"),
        ("a.json", b"PK\x03\x04\x00\x00", r"not a UTF-8 text file.*PK"),
        ("a.json", "hello", r"not a JSON file of rows.*hello"),
        ("a.json", '[{"a": 1},\n{"a": }\n]', r"not valid JSON: Expecting value.*line 2, row 2"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', r"expected ',' or '\]', found '\{'.*line 2, after row 1"),
        ("a.json", '[{"a": 1},\n{"a": "x', r"not valid JSON: Unterminated string.*line 2, row 2"),
        ("a.json", '[{"a": 1}', r"not closed by \].*after row 1"),
        ("a.json", '[{"a": 1}, 7]', r"not a JSON object.*row 2"),
        ("a.json", b'[{"a": "b"},\n{"a": "\xff"}]', r"not UTF-8 text.*line 2"),
        ("a.json", "[" * 100_000, r"nested too deep.*row 1|not valid JSON.*row 1"),
        ("a.csv", 'a,b\n1,"2\n', r"not valid CSV.*line 2"),
        ("a.csv", b"a,b\n1,\xff\n", r"not UTF-8 text.*line 2"),
        ("a.parquet", "no parquet file at all", r"not a readable parquet file.*a\.parquet"),
        ("a.arrow", "no arrow file at all", r"not a readable arrow file.*a\.arrow"),
    ],
)
def test_a_broken_file_is_an_error_that_names_the_place(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_all(write(tmp_path / name, content), tmp_path / "cache")
    assert list((tmp_path / "cache" / "index").glob(".*")) == []


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b'{"a": 1', "not valid JSON: Expecting ',' delimiter at character 8 of the row"),
        (b"[1, 2]", "the row is not a JSON object {column: value}"),
        (b'{"a": "\xff"}', "not UTF-8 text: invalid start byte at byte 8 of the row"),
        (rb'{"a": "\ud83d"}', r"holds half of a surrogate pair (\ud800 to \udfff), which is not a character"),
        (b'{"a": ' + b"[" * 100_000, "its JSON is nested too deep"),
    ],
)
def test_a_broken_json_line_is_an_invalid_row_in_its_place(tmp_path: Path, line: bytes, rule: str) -> None:
    rows = read_all(write(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n'), tmp_path / "cache")
    assert rows[0] == {"a": 1}
    assert isinstance(rows[1], InvalidRow)
    assert rows[1].rule == rule
    assert rows[2] == {"a": 3}


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    assert read_all(write(tmp_path / "a.jsonl", r'{"a": "\ud83d\ude00"}'), tmp_path / "cache") == [{"a": "\U0001f600"}]


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "alpaca.json", "[]")
    with pytest.raises(DataError, match=r"there is no file .*alpacca\.json.*Did you mean alpaca\.json"):
        list_files(DatasetSpec("set", Source("file", "alpacca.json"), dataset_dir=str(tmp_path)))


def test_a_folder_of_several_kinds_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "[]")
    write(tmp_path / "b.csv", "a\n1\n")
    with pytest.raises(DataError, match="mixes csv, json files"):
        list_files(DatasetSpec("set", Source("file", str(tmp_path))))


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kind '\.xlsx' are not read.*\.parquet"):
        list_files(DatasetSpec("set", Source("file", str(write(tmp_path / "a.xlsx", "x")))))


def test_a_source_that_is_not_built_is_refused() -> None:
    with pytest.raises(DataError, match="cloud source, which is not built yet"):
        list_files(DatasetSpec("set", Source("cloud", "s3://bucket/a.json")))


def test_a_hub_data_set_is_copied_batch_by_batch(tmp_path: Path) -> None:
    folder = tmp_path / "hub_set"
    folder.mkdir()
    write(folder / "train.jsonl", "\n".join(json.dumps(row) for row in ROWS))
    (file,) = list_files(DatasetSpec("set", Source("hf_hub", str(folder))))
    index, rows = index_file(file, tmp_path / "cache")
    assert (rows, open_rows(file, index).read([2, 0])) == (3, [ROWS[2], ROWS[0]])


def test_a_hub_data_set_without_a_network_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (file,) = list_files(DatasetSpec("set", Source("hf_hub", "nobody/nothing")))
    with pytest.raises(DataError, match=r"cannot load the hub data set 'nobody/nothing'.*data set 'set'"):
        index_file(file, tmp_path)
