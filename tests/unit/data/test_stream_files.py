"""Rows of a file, one after another, from any mark on."""

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytune.data import stream_files
from raytune.data.formats import InvalidRow
from raytune.data.inputs import find_streams
from raytune.data.registry import DatasetSpec, Source
from raytune.data.sources import SourceFile
from raytune.data.stream_files import find_stream, read_from
from raytune.data.stream_marks import SetMark
from raytune.errors import DataError
from tests.helpers.prepared import options_for

ROWS = [{"instruction": f"q{n} \u00e9\n", "output": "x" * (n % 7) + f'"{n}"'} for n in range(2500)]
KINDS = ("list.json", "pretty.json", "lines.jsonl", "rows.csv", "rows.parquet", "file.arrow", "stream.arrow", "a.txt")


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows in the format that the file's name says, by the libraries that define it."""
    table = pa.Table.from_pylist(rows)
    match path.name:
        case "list.json":
            path.write_text(json.dumps(rows))
        case "pretty.json":
            path.write_text("\ufeff" + json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
        case "lines.jsonl":
            path.write_text("\n\n".join(json.dumps(row) for row in rows))
        case "rows.csv":
            with path.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case "rows.parquet":
            pq.write_table(table, path, row_group_size=700)
        case "file.arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=600)
        case "stream.arrow":
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=600)
        case "a.txt":
            path.write_text("".join(f"{row['output']}\r\n \n" for row in rows))
    return path


def expected(name: str) -> list[dict[str, Any]]:
    return [{"text": row["output"]} for row in ROWS] if name == "a.txt" else ROWS


def source(path: Path | str) -> SourceFile:
    (file,) = find_stream(DatasetSpec("set", Source("file", str(path))))
    return file


@pytest.mark.parametrize("name", KINDS)
def test_the_rows_are_those_that_were_written(tmp_path: Path, name: str) -> None:
    file = source(write(tmp_path / name))
    assert [row for row, _, _ in read_from(file, SetMark())] == expected(name)


@pytest.mark.parametrize("name", KINDS)
def test_reading_goes_on_behind_any_row(tmp_path: Path, name: str) -> None:
    file = source(write(tmp_path / name))
    marks = [mark for _, mark, _ in read_from(file, SetMark())]
    assert [mark.row for mark in marks] == list(range(1, len(ROWS) + 1))
    for place in (0, 1, 598, 599, 699, 700, 1399, 2498):
        rest = list(read_from(file, marks[place]))
        assert [row for row, _, _ in rest] == expected(name)[place + 1 :]
        assert [mark for _, mark, _ in rest] == marks[place + 1 :]
    assert list(read_from(file, marks[-1])) == []


@pytest.mark.parametrize("name", ["lines.jsonl", "rows.parquet", "stream.arrow", "rows.csv"])
def test_a_file_at_an_address_is_read_like_a_local_one(tmp_path: Path, name: str) -> None:
    content = write(tmp_path / name).read_bytes()
    fsspec.filesystem("memory").pipe_file(f"/there/{tmp_path.name}/{name}", content)
    file = source(f"memory://there/{tmp_path.name}/{name}")
    assert file.shown == f"memory://there/{tmp_path.name}/{name}"
    marks = [mark for _, mark, _ in read_from(file, SetMark())]
    assert [row for row, _, _ in read_from(file, marks[900])] == ROWS[901:]


def test_a_packed_file_goes_on_behind_any_row() -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    fsspec.filesystem("memory").pipe_file("/packed/a.jsonl.gz", packed)
    file = source("memory://packed/a.jsonl.gz")
    marks = [mark for _, mark, _ in read_from(file, SetMark())]
    assert [row for row, _, _ in read_from(file, marks[1700])] == ROWS[1701:]


def test_a_connection_that_breaks_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/far/a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    left = 3

    def breaking(file: SourceFile, **keys: Any) -> Any:
        nonlocal left
        left -= 1
        return _Breaks(open_at(file, **keys), 50_000 if left else 10**9)

    open_at = stream_files.open_at
    monkeypatch.setattr(stream_files, "open_at", breaking)
    monkeypatch.setattr(stream_files, "_PAUSE", 0.0)
    assert [row for row, _, _ in read_from(source("memory://far/a.jsonl"), SetMark())] == ROWS
    assert left == 0


class _Breaks(io.BytesIO):
    """A file whose connection breaks after so many bytes."""

    def __init__(self, opened: BinaryIO, left: int) -> None:
        super().__init__(opened.read())
        self._left = left

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionResetError("connection reset by peer")
        return line


def test_a_connection_that_stays_broken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/gone/a.jsonl", b'{"n": 1}\n{"n": 2, "more": ""}\n')
    open_at = stream_files.open_at
    monkeypatch.setattr(stream_files, "open_at", lambda file, **keys: _Breaks(open_at(file, **keys), 12))
    monkeypatch.setattr(stream_files, "_PAUSE", 0.0)
    with pytest.raises(DataError, match=r"reading stopped after row 1: connection reset .*memory://gone/a\.jsonl"):
        list(read_from(source("memory://gone/a.jsonl"), SetMark(0, 0, 0)))


def test_a_folder_at_an_address_is_its_files_in_order() -> None:
    for name in ("b", "a"):
        fsspec.filesystem("memory").pipe_file(f"/folder/{name}.jsonl", b'{"output": "1"}')
    files = find_stream(DatasetSpec("set", Source("cloud", "memory://folder")))
    assert [file.shown for file in files] == ["memory://folder/a.jsonl", "memory://folder/b.jsonl"]


def test_what_is_not_there_says_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder \(memory://nowhere/a\.jsonl\)"):
        source("memory://nowhere/a.jsonl")
    with pytest.raises(DataError, match="there is no file"):
        source(tmp_path / "a.jsonl")


def test_num_samples_is_refused_for_it_needs_all_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set 'set' draws num_samples rows"):
        find_stream(DatasetSpec("set", Source("file", str(tmp_path)), num_samples=3))


def test_a_hub_data_set_is_not_streamed_yet() -> None:
    with pytest.raises(DataError, match=r"hf_hub source, whose streaming is not built yet.*hf://"):
        find_stream(DatasetSpec("set", Source("hf_hub", "some/where")))


def test_a_broken_line_is_an_invalid_row_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"output": "1"}\n{"output": \n[3]\n{"output": "\\ud800"}\n{"output": "5"}\n')
    first, *broken, last = (row for row, _, _ in read_from(source(path), SetMark()))
    assert (first, last) == ({"output": "1"}, {"output": "5"})
    rules = [row.rule if isinstance(row, InvalidRow) else None for row in broken]
    assert rules == [
        "not valid JSON: Expecting value at character 12 of the row",
        "the row is not a JSON object {column: value}",
        "holds half of a surrogate pair (\\ud800 to \\udfff), which is not a character",
    ]


def test_a_broken_list_names_line_and_row_also_when_reading_went_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[\n{"output": "1"},\n{"output": "2"},\n{"output" 3}\n]')
    marks = []
    with pytest.raises(DataError, match="line 4, row 3"):
        marks.extend(mark for _, mark, _ in read_from(source(path), SetMark()))
    _, mark, _ = next(read_from(source(path), SetMark()))
    with pytest.raises(DataError, match="line 4, row 3"):
        list(read_from(source(path), mark))


def test_a_csv_row_with_too_few_fields_is_an_invalid_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\na,b\nc\nd,e\n")
    rows = [row for row, _, _ in read_from(source(path), SetMark())]
    assert isinstance(rows[1], InvalidRow)
    assert rows[1].rule == "it has 1 fields, the header has 2"
    assert rows[2] == {"instruction": "d", "output": "e"}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_row_that_does_not_end_is_not_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(stream_files, "_LONGEST_LINE", 1 << 20)
    path = tmp_path / name
    endless = {"a.jsonl": '{"a": "', "a.csv": 'a,b\n1,2\n"'}[name]
    path.write_text(endless + ("x" if name == "a.jsonl" else "x\n") * (3 << 20))
    with pytest.raises(DataError, match="row has more than 1 MiB"):
        list(read_from(source(path), SetMark()))


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"not a readable parquet file: .*rows\.parquet\) Fetch or write it again"):
        list(read_from(source(path), SetMark()))


@pytest.mark.parametrize("content", [b'{"output": "1"}\n', gzip.compress(b'{"output": "1"}\n' * 9, mtime=0)[:-12]])
def test_a_broken_packed_file_is_told_with_and_without_an_entry(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    said = r"reading stopped after row \d: .*a\.jsonl\.gz\)\. Fetch or write it again"
    with pytest.raises(DataError, match=said):
        list(read_from(source(path), SetMark()))
    with pytest.raises(DataError, match=said):
        find_streams(options_for(tmp_path, dataset=str(path), streaming=True, max_steps=1))


def test_a_quote_that_stays_open_is_told_where_its_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"two\nlines"\n\n3,"never closed\n5,6\n')
    said = r"not valid CSV: unexpected end of data \(.*a\.csv line 5\)\. Look for a quote"
    reading = read_from(source(path), SetMark())
    row, mark, _ = next(reading)
    assert row == {"a": "1", "b": "two\nlines"}
    with pytest.raises(DataError, match=said):
        next(reading)
    with pytest.raises(DataError, match=said):
        list(read_from(source(path), mark))


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl", "rows.csv", "rows.parquet", "file.arrow"])
def test_a_row_that_is_too_large_is_told_in_its_place(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_files, "MAX_ROW_BYTES", 500)
    rows = [{"a": "x"}, {"a": "y" * 1000}, {"a": "z"}]
    found = [row for row, _, _ in read_from(source(write(tmp_path / name, rows)), SetMark())]
    assert [found[0], found[2]] == [rows[0], rows[2]]
    assert isinstance(found[1], InvalidRow)
    assert "bytes; rows of more than" in found[1].rule


def test_a_csv_row_in_another_encoding_is_told_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("a,b\n\u00e9,1\n".encode() + b"\xe9,2\n" + b"x,3\n")
    found = [row for row, _, _ in read_from(source(path), SetMark())]
    assert [found[0], found[2]] == [{"a": "\u00e9", "b": "1"}, {"a": "x", "b": "3"}]
    assert isinstance(found[1], InvalidRow)
    assert found[1].rule.startswith("not UTF-8 text: ")


def test_a_packed_file_may_be_named_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.JSONL.GZ"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert [row for row, _, _ in read_from(source(path), SetMark())] == [{"a": 1}]


def test_a_row_of_a_list_in_another_encoding_is_told_in_its_place(tmp_path: Path) -> None:
    """As it is told in a file of lines, unlike half of a surrogate pair that is written out."""
    path = tmp_path / "a.json"
    path.write_bytes('[{"a": "\u00e9"},\n{"a": "'.encode() + b'\xe9t\xe9"}, {"a": "\\udce9"}, {"a": "x"}]')
    found = [row for row, _, _ in read_from(source(path), SetMark())]
    assert [found[0], found[3]] == [{"a": "\u00e9"}, {"a": "x"}]
    rules = [row.rule for row in found[1:3] if isinstance(row, InvalidRow)]
    # {"a": " is seven characters before it.
    assert rules[0] == "not UTF-8 text: invalid continuation byte at byte 8 of the row; save the file as UTF-8"
    assert rules[1].startswith("holds half of a surrogate pair")


def test_a_file_that_changes_while_a_run_reads_it_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "lines.jsonl")
    file = source(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"the file has changed since the run began \(.*lines\.jsonl\)"):
        list(read_from(file, SetMark()))
