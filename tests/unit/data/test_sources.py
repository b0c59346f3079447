import csv
import gzip
import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytune.data import scan, spans
from raytune.data.formats import InvalidRow
from raytune.data.inorder import rows_in_order
from raytune.data.registry import DatasetSpec, Source
from raytune.data.scan import index_file
from raytune.data.sources import find_files, find_specs, list_all, list_files, open_rows
from raytune.errors import DataError
from tests.helpers.source_files import ROWS, read_all, write


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only))
    assert read_all(path, tmp_path / "cache") == ROWS


@pytest.mark.parametrize("window", range(1, 40, 3))
def test_a_json_list_read_through_a_small_window(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_WINDOW", window)
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
    (found,) = find_specs([str(path)], str(tmp_path / "no_registry"))
    (file,) = list_files(found, tmp_path / "cache")
    assert (file.spec.columns.prompt, file.spec.columns.response) == ("text", None)
    assert file.path == str(path)


def test_a_name_may_be_a_path_in_dataset_dir_a_folder_or_an_entry(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "a.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "b.json", json.dumps(ROWS))
    write(tmp_path / "dataset_info.json", json.dumps({"entry": {"file_name": "b.json"}}))
    specs = find_specs(["b.json", "entry", str(tmp_path / "set")], str(tmp_path))
    assert [(spec.name, spec.detect) for spec in specs] == [("b", True), ("entry", False), ("set", True)]
    assert [file.path for spec in specs for file in list_files(spec, tmp_path / "cache")] == [
        str(tmp_path / "b.json"),
        str(tmp_path / "b.json"),
        str(tmp_path / "set" / "a.jsonl"),
    ]


def test_a_path_that_is_not_there_is_told_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "dataset_info.json", "{}")
    write(tmp_path / "alpaca.jsonl", "{}")
    with pytest.raises(DataError, match=r"there is no file .*alpacca\.jsonl.*Did you mean alpaca\.jsonl"):
        find_specs([str(tmp_path / "alpacca.jsonl")], str(tmp_path))
    # Also where there is no dataset_info.json, which none needs who names files.
    with pytest.raises(DataError, match=r"there is no file .*alpacca\.jsonl.*Did you mean alpaca\.jsonl"):
        find_specs([str(tmp_path / "alpacca.jsonl")], str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"a\.xlsx"):
        find_specs([str(write(tmp_path / "a.xlsx", "x"))], str(tmp_path / "none"))


def test_a_layout_that_cannot_be_told_is_told_before_anything_starts(tmp_path: Path) -> None:
    (spec,) = find_specs([str(write(tmp_path / "a.jsonl", '{"x": 1}'))], "")
    with pytest.raises(DataError, match=r"cannot tell how the rows of data set 'a' are laid out.*x \(number\)"):
        find_files(spec)


def test_two_files_of_one_name_keep_their_whole_names(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{folder}-test.json", "[]") for folder in "xy"]
    for path in paths:
        path.with_suffix("").mkdir()
        path.rename(path.with_suffix("") / "test.json")
    names = [str(path.with_suffix("") / "test.json") for path in paths]
    assert [spec.name for spec in find_specs(names, str(tmp_path))] == ["test", names[1]]


def test_the_layout_is_told_from_the_first_rows_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["{broken", *(json.dumps({"question": f"q{n}", "answer": "a"}) for n in range(300))]
    path = write(tmp_path / "sums.jsonl", "\n".join(lines))
    with caplog.at_level(logging.INFO, logger="raytune"):
        (file,) = list_files(find_specs([str(path)], "")[0], tmp_path / "cache")
    assert f"data set 'sums' ({path}): alpaca, question 'question', answer 'answer'" in caplog.text
    assert file.spec.columns.prompt == "question"


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow", "jsonl.gz"])
def test_the_layout_of_every_kind_of_file_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    table = pa.table({"question": ["q"] * 3, "answer": ["a"] * 3})
    match kind:
        case "csv":
            write(path, "question,answer\n" + "q,a\n" * 3)
        case "parquet":
            pq.write_table(table, path)
        case "arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        case _:
            write(path, gzip.compress(b'{"question": "q", "answer": "a"}\n' * 3))
    (spec,) = find_specs([str(path)], "")
    assert find_files(spec) == [path]
    (file,) = list_files(spec, tmp_path / "cache")
    assert (spec.name, file.spec.columns.prompt, file.spec.columns.response) == ("a", "question", "answer")
    index, rows = index_file(file, tmp_path / "cache")
    assert (rows, open_rows(file, index).read([2])) == (3, [{"question": "q", "answer": "a"}])


def test_rows_lack_optional_columns_of_a_detected_layout(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a"}, {"instruction": "q", "output": "a", "system": "s"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    (file,) = list_files(find_specs([str(path)], "")[0], tmp_path / "cache")
    index, _ = index_file(file, tmp_path / "cache")
    assert open_rows(file, index).read([0, 1]) == [{**rows[0], "system": None}, rows[1]]


def test_missing_files_of_several_sets_are_told_at_once(tmp_path: Path) -> None:
    entries = {"x": {"file_name": "x.json"}, "y": {"file_name": "y.json"}}
    write(tmp_path / "dataset_info.json", json.dumps(entries))
    with pytest.raises(DataError) as caught:
        list_all(find_specs(["x", "y"], str(tmp_path)), tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 errors in the data sets:"
    assert [
        f"there is no file {tmp_path}/{name}.json" in line for name, line in zip("xy", lines[1:], strict=False)
    ] == [
        True,
        True,
    ]
    with pytest.raises(
        DataError, match=r"2 errors in the data sets:\n  data set 'z1' is not .*\n  data set 'z2' is not"
    ):
        find_specs(["z1", "x", "z2"], str(tmp_path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_compressed_files_are_unpacked_once(tmp_path: Path, name: str) -> None:
    plain = {"a.csv.gz": b"a,b\n1,2\n", "a.json.gz": b'[{"a": "1", "b": "2"}]', "a.jsonl.gz": b'{"a": "1", "b": "2"}'}
    path = write(tmp_path / name, gzip.compress(plain[name]))
    assert read_all(path, tmp_path / "cache") == [{"a": "1", "b": "2"}]
    (made,) = (tmp_path / "cache" / "unpacked").iterdir()
    before = made.stat().st_mtime_ns
    (file,) = list_files(DatasetSpec("set", Source("file", str(path))), tmp_path / "cache")
    assert (file.path, file.shown, made.stat().st_mtime_ns) == (str(made), name, before)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 5000, mtime=0)[:-9]])
def test_a_broken_gzip_file_is_named_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.jsonl.gz", content)
    with pytest.raises(DataError, match=r"not a readable gzip file: .*a\.jsonl\.gz.*unpack"):
        read_all(path, tmp_path / "cache")
    assert list((tmp_path / "cache" / "unpacked").iterdir()) == []


def test_a_script_is_not_run_and_the_files_beside_it_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    write(folder / "made.py", "raise SystemExit")
    spec = DatasetSpec("set", Source("script", "made"), dataset_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"made by a Python script \(script_url\).*not run.*made.*file_name"):
        list_files(spec)
    write(folder / "made_test.jsonl", json.dumps(ROWS[1]))
    with pytest.raises(DataError, match=r"made by a Python script.*data files of the split train"):
        list_files(spec)
    write(folder / "made_train.jsonl", json.dumps(ROWS[0]))
    write(folder / "dataset_infos.json", "{}")
    with caplog.at_level(logging.WARNING, logger="raytune"):
        assert [Path(file.path).name for file in list_files(spec)] == ["made_train.jsonl"]
    assert "its script is not run; its rows come from made_train.jsonl" in caplog.text
    assert [Path(file.path).name for file in list_files(replace(spec, split="test"))] == ["made_test.jsonl"]


def test_a_split_of_a_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", json.dumps(ROWS))
    with pytest.raises(DataError, match=r"split 'train\[:2\]' is of hub data sets.*max_samples"):
        list_files(DatasetSpec("set", Source("file", str(tmp_path / "a.json")), split="train[:2]"))


def test_openmind_is_refused_with_a_reason() -> None:
    with pytest.raises(DataError, match=r"OpenMind hub, which is not read.*owner/name.*file_name"):
        list_files(DatasetSpec("set", Source("om_hub", "owner/name")))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "txt", "parquet", "arrow"])
def test_rows_in_order_equal_rows_by_number(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    table = pa.Table.from_pylist(ROWS)
    match kind:
        case "parquet":
            pq.write_table(table, path)
        case "arrow":
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
        case "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, ["instruction", "input", "output"])
                writer.writeheader()
                writer.writerows(ROWS)
        case "json":
            write(path, "\ufeff" + json.dumps(ROWS, ensure_ascii=False, indent=1))
        case _:
            write(path, "\n \n".join(json.dumps(row) for row in ROWS))
    with path.open("rb") as opened:
        found = list(rows_in_order(list_files(DatasetSpec("set", Source("file", str(path))))[0].kind, opened, "a"))
    assert found == read_all(path, tmp_path / "cache")
    assert len(found) == 3


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
        ("a.json", '{\n  "a": 1\n}', r"not one JSON object a line.*a\.json line 1.*\[\{...\}, \{...\}\]"),
        ("a.json", "<!DOCTYPE html><html>", r"begins with b'<!DOCTYP'.*web page"),
        ("a.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0", r"Git LFS pointer.*git lfs pull"),
        ("a.json", "\ufeff[]".encode("utf-16"), r"UTF-16 text.*iconv"),
        ("a.csv", b"PK\x03\x04xxxx", r"Excel workbook.*save the sheet as CSV"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", r"a gzip file.*\.gz"),
        ("a.json", "[" * 100_000, r"nested too deep.*row 1|not valid JSON.*row 1"),
        ("a.csv", 'a,b\n1,"2\n', r"not valid CSV.*line 2"),
        ("a.csv", b"a,\xff\n1,2\n", r"the header is not UTF-8 text.*a\.csv"),
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
        (b'{"a": "\xff"}', "not UTF-8 text: invalid start byte at byte 8 of the row; save the file as UTF-8"),
        (
            b'{"a": "\xed\xa0\x80"}',
            "not UTF-8 text: invalid continuation byte at byte 8 of the row; save the file as UTF-8",
        ),
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


@pytest.mark.parametrize(
    ("element", "rule"),
    [
        (b"7", "the row is not a JSON object {column: value}"),
        (b'{"a": "\xff\xc3"}', "not UTF-8 text: invalid start byte at byte 8 of the row; save the file as UTF-8"),
    ],
)
def test_a_broken_element_of_a_list_is_an_invalid_row_in_its_place(tmp_path: Path, element: bytes, rule: str) -> None:
    content = '[{"a": "\u00fc"}, '.encode() + element + b', {"a": 3}]'
    rows = read_all(write(tmp_path / "a.json", content), tmp_path / "cache")
    assert [rows[0], rows[2]] == [{"a": "\u00fc"}, {"a": 3}]
    assert isinstance(rows[1], InvalidRow)
    assert rows[1].rule == rule


@pytest.mark.parametrize(("name", "before"), [("a.csv", b"text\n"), ("a.txt", b"")])
def test_bytes_that_are_no_text_are_an_invalid_row(tmp_path: Path, name: str, before: bytes) -> None:
    rows = read_all(write(tmp_path / name, before + b"one\n\xb1\xb1\nthree\n"), tmp_path / "cache")
    assert [rows[0], rows[2]] == [{"text": "one"}, {"text": "three"}]
    assert isinstance(rows[1], InvalidRow)
    assert rows[1].rule.startswith("not UTF-8 text: invalid start byte at byte 1 of the row")


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
