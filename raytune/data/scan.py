"""The index of a file: where each of its rows begins and ends, made once and kept in the cache by content.

JSON, CSV and text files are scanned through a window of a few megabytes; Parquet files and hub data sets, which know no
such places, become an Arrow file of the cache batch by batch.
"""

import csv
import json
import os
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raytune.data.sources import SourceFile
from raytune.data.store import cannot_write, write_atomically
from raytune.errors import DataError

INDEX_VERSION = 1
_WINDOW = 8 << 20
_TOKEN = 64
"""No JSON number, constant or escape is longer than this, so an error further from the window's edge is a real one."""
_BATCH_ROWS = 1000
_BOM = b"\xef\xbb\xbf"

Span = tuple[int, int]


def index_file(file: SourceFile, cache: Path, *, token: str | None = None) -> tuple[Path, int]:
    """Make the index of a file, or find it in the cache.

    Args: token: the user's hub token. Returns: (path of the index, number of rows).
    Raises: DataError for a file that is empty, binary or broken, naming the file and the row or line.
    """
    folder = cache / "index"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if file.kind == "arrow" and _is_random_access(Path(file.path)):
        index = Path(file.path)
    else:
        index = folder / f"v{INDEX_VERSION}-{file.kind}-{file.digest}{_SUFFIXES[file.kind]}"
    if not index.exists():
        _make(file, index, cache, token)
    rows = _count(file, index)
    if rows == 0:
        raise DataError("the file holds no row", where=file.path)
    return index, rows


_SUFFIXES = {"json": ".npy", "csv": ".npy", "txt": ".npy", "parquet": ".arrow", "arrow": ".arrow", "hub": ".arrow"}


def _make(file: SourceFile, index: Path, cache: Path, token: str | None) -> None:
    match file.kind:
        case "json" | "csv" | "txt":
            with Path(file.path).open("rb") as opened:
                _write_spans(_scan(file, opened), index)
        case "parquet":
            _write_arrow(_parquet_batches(file), index, file)
        case "arrow":
            _write_arrow(_stream_batches(file), index, file)
        case "hub":
            _write_arrow(_hub_batches(file, cache, token), index, file)


def _count(file: SourceFile, index: Path) -> int:
    if index.suffix == ".npy":
        return len(np.load(index, mmap_mode="r")) - (1 if file.kind == "csv" else 0)
    opened = pa.ipc.open_file(pa.memory_map(str(index)))
    return sum(opened.get_batch(number).num_rows for number in range(opened.num_record_batches))


def _write_spans(spans: Iterator[Span], index: Path) -> None:
    flat = np.fromiter((place for span in spans for place in span), dtype=np.int64)
    content = BytesIO()
    np.save(content, flat.reshape(-1, 2))
    write_atomically(index, content.getvalue())


def _scan(file: SourceFile, opened: BinaryIO) -> Iterator[Span]:
    head = opened.read(4096)
    start = len(_BOM) if head.startswith(_BOM) else 0
    text = head[start:].lstrip()
    if not text and len(head) < 4096:
        raise DataError("the file is empty", where=file.path)
    if b"\0" in head:
        raise DataError(f"not a UTF-8 text file: it begins with {head[:8]!r}", where=file.path)
    opened.seek(start)
    match file.kind:
        case "csv":
            return _scan_csv(file, opened, start)
        case "txt":
            return _scan_lines(opened, start)
    if text[:1] == b"[":
        return _scan_array(file, opened, start)
    if text[:1] == b"{":
        return _scan_lines(opened, start)
    raise DataError(
        f"not a JSON file of rows: it begins with {head[start : start + 8]!r}",
        where=file.path,
        fix="It must be a list of objects, or one object a line.",
    )


def _scan_lines(opened: BinaryIO, start: int) -> Iterator[Span]:
    for line in opened:
        if not line.isspace():
            yield start, start + len(line.rstrip(b"\r\n"))
        start += len(line)


def _scan_csv(file: SourceFile, opened: BinaryIO, start: int) -> Iterator[Span]:
    csv.field_size_limit(sys.maxsize)
    place = start
    line_number = 0

    def lines() -> Iterator[str]:
        nonlocal place, line_number
        for line in opened:
            place += len(line)
            line_number += 1
            yield line.decode("utf-8")

    reader = csv.reader(lines(), strict=True)
    try:
        for fields in reader:
            if fields:
                yield start, place
            start = place
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", where=f"{file.path} line {line_number}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason}", where=f"{file.path} line {line_number}") from None


def _scan_array(file: SourceFile, opened: BinaryIO, start: int) -> Iterator[Span]:
    """Find the elements of a JSON list, reading through a window that grows only for an element larger than it."""
    decode = json.JSONDecoder().raw_decode
    window = _Window(file, opened, start)
    window.skip("[")
    row = 0
    while not window.skip("]"):
        if row:
            window.expect(",", row)
        window.skip("")
        while True:
            try:
                value, end = decode(window.text, window.place)
                break
            except (json.JSONDecodeError, RecursionError) as error:
                if window.is_certain(error) or not window.grow():
                    raise window.broken(error, row + 1) from None
        if not isinstance(value, dict):
            raise DataError("the row is not a JSON object {column: value}", where=f"{file.path} row {row + 1}")
        yield window.advance(end)
        row += 1


class _Window:
    """A decoded stretch of a file that moves forward, and the byte at which its text begins."""

    def __init__(self, file: SourceFile, opened: BinaryIO, start: int) -> None:
        self.text = ""
        self.place = 0
        self._file = file
        self._opened = opened
        self._decoder = getincrementaldecoder("utf-8")()
        self._byte = start  # of text[place]
        self._line = 1  # of text[place]
        self._ascii = True

    def grow(self) -> bool:
        """Drop what is done and read on; False at the end of the file."""
        fresh = self._opened.read(max(_WINDOW, len(self.text) - self.place))
        try:
            text = self._decoder.decode(fresh, final=not fresh)
        except UnicodeDecodeError as error:
            line = self._line + self.text.count("\n", self.place) + fresh[: error.start].count(b"\n")
            raise DataError(f"not UTF-8 text: {error.reason}", where=f"{self._file.path} line {line}") from None
        if not fresh:
            return False
        self.text = self.text[self.place :] + text
        self.place = 0
        self._ascii = self.text.isascii()
        return True

    def advance(self, end: int) -> Span:
        """Move to `end`; return the bytes passed."""
        start = self._byte
        passed = self.text[self.place : end]
        self._byte += len(passed) if self._ascii else len(passed.encode())
        self._line += passed.count("\n")
        self.place = end
        return start, self._byte

    def skip(self, mark: str) -> bool:
        """Pass white space, and `mark` if it comes next; False if it does not."""
        while True:
            place = self.place
            while place < len(self.text) and self.text[place] in " \t\r\n":
                place += 1
            self.advance(place)
            if place < len(self.text) or not self.grow():
                break
        if not self.text.startswith(mark, self.place):
            return False
        self.advance(self.place + len(mark))
        return True

    def expect(self, mark: str, row: int) -> None:
        if self.skip(mark):
            return
        if self.place >= len(self.text):
            raise DataError("the list of rows is not closed by ]", where=f"{self._file.path} after row {row}")
        where = f"{self._file.path} line {self._line}, after row {row}"
        raise DataError(f"not valid JSON: expected ',' or ']', found {self.text[self.place]!r}", where=where)

    def is_certain(self, error: json.JSONDecodeError | RecursionError) -> bool:
        """Whether the text is wrong for sure, and not just cut by the window's edge."""
        if isinstance(error, RecursionError):
            return True
        return not error.msg.startswith("Unterminated") and error.pos < len(self.text) - _TOKEN

    def broken(self, error: json.JSONDecodeError | RecursionError, row: int) -> DataError:
        if isinstance(error, RecursionError):
            return DataError("its JSON is nested too deep", where=f"{self._file.path} row {row}")
        line = self._line + self.text.count("\n", self.place, error.pos)
        return DataError(f"not valid JSON: {error.msg}", where=f"{self._file.path} line {line}, row {row}")


def _is_random_access(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(6) == b"ARROW1"


def _parquet_batches(file: SourceFile) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file.path) as opened:
        yield from opened.iter_batches(batch_size=_BATCH_ROWS)


def _stream_batches(file: SourceFile) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(file.path) as opened, pa.ipc.open_stream(opened) as reader:
        yield from reader


def _hub_batches(file: SourceFile, cache: Path, token: str | None) -> Iterator[pa.RecordBatch]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    spec = file.spec
    settings: dict[str, Any] = {"name": spec.subset, "data_dir": spec.folder, "split": spec.split, "token": token}
    try:
        loaded = datasets.load_dataset(file.path, cache_dir=str(cache / "hub"), **settings)
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load the hub data set '{file.path}': {_first_line(error)}",
            where=f"data set '{spec.name}', subset {spec.subset}, split {spec.split}",
            fix="Check its name and the network (HF_ENDPOINT, HF_HOME), or download it and name the file instead.",
        ) from None
    for table in loaded.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        yield from table.combine_chunks().to_batches()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _write_arrow(batches: Iterator[pa.RecordBatch], index: Path, file: SourceFile) -> None:
    temporary = index.with_name(f".{index.name}.{os.getpid()}.tmp")
    try:
        first = next(batches, None)
        if first is None:
            raise DataError("the file holds no row", where=file.path)
        with pa.ipc.new_file(str(temporary), first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        temporary.replace(index)
    except pa.ArrowInvalid as error:
        raise DataError(f"not a readable {file.kind} file: {_first_line(error)}", where=file.path) from None
    except OSError as error:
        # Arrow's own reading errors are OSErrors without a number.
        if error.errno is None:
            raise DataError(f"not a readable {file.kind} file: {_first_line(error)}", where=file.path) from None
        raise cannot_write(index, error) from None
    finally:
        temporary.unlink(missing_ok=True)
