"""Where rows come from: a data set's files, and any row of them by its number.

The driver only lists and hashes files. Workers make an index of each file once (where each row begins and ends, or an
Arrow copy of what has no such places) and then read just the rows they encode, so no process ever holds a data set.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from csv import reader as csv_reader
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raytune.data.formats import InvalidRow
from raytune.data.registry import Columns, DatasetSpec, Source, load_registry
from raytune.errors import DataError

Row = Mapping[str, Any]
Kind = Literal["json", "csv", "txt", "parquet", "arrow", "hub"]

KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TEXT_COLUMN = "text"
"""The only column of a .txt file: each line that is not blank is a row."""


# Made by list_files on the driver, read by raytune.data.scan and open_rows in the workers.
@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a data set, or a whole hub data set.

    `digest` is the content's hash (for a hub data set, of its id, subset and split): the name of its index.

    Example: SourceFile("data/identity.json", "json", "9f86d0...", spec)
    """

    path: str
    kind: Kind
    digest: str
    spec: DatasetSpec

    @property
    def shown(self) -> str:
        return self.path if self.kind == "hub" else Path(self.path).name


class Rows(Protocol):
    """The rows of one file, read by number."""

    def read(self, numbers: Sequence[int]) -> list[Row | InvalidRow]:
        """Return rows by number from 0; one that cannot be read is an InvalidRow in its place."""
        ...


def find_specs(names: Iterable[str], dataset_dir: str) -> list[DatasetSpec]:
    """Return the entry of each data set; a name may also be the path of a file or folder, read as alpaca or text.

    Raises: DataError for a name that is neither defined nor a path.
    """
    registry = None
    specs: list[DatasetSpec] = []
    for name in names:
        if Path(name).suffix in KINDS and Path(name).exists():
            specs.append(_spec_of_path(Path(name)))
        else:
            registry = registry or load_registry(dataset_dir)
            specs.append(registry.get(name))
    return specs


def _spec_of_path(path: Path) -> DatasetSpec:
    spec = DatasetSpec(path.stem, Source("file", str(path)))
    if path.suffix != ".txt":
        return spec
    return replace(spec, columns=Columns(prompt=TEXT_COLUMN, query=None, response=None), spelled=frozenset({"prompt"}))


def list_files(spec: DatasetSpec) -> list[SourceFile]:
    """Return the files of a data set in a fixed order, each with its content's hash.

    Raises: DataError for a missing file, an empty folder, mixed or unknown kinds, or a source that is not built.
    """
    if spec.source.kind == "hf_hub":
        named = json.dumps([spec.source.location, spec.subset, spec.split, spec.folder])
        digest = hashlib.sha256(named.encode()).hexdigest()
        return [SourceFile(spec.source.location, "hub", digest, spec)]
    return [SourceFile(str(file), _kind(file, spec), _digest(file), spec) for file in find_files(spec)]


def find_files(spec: DatasetSpec) -> list[Path]:
    """Return the local files of a data set (none for one of a hub) without reading them.

    Raises: as list_files.
    """
    match spec.source.kind:
        case "file":
            files = _files(Path(spec.dataset_dir) / spec.source.location, spec)
            for file in files:
                _kind(file, spec)
            return files
        case "hf_hub":
            return []
        case kind:
            raise DataError(
                f"data set '{spec.name}' comes from a {kind} source, which is not built yet",
                where=spec.source.location,
                fix="Download it and name the file in dataset_info.json.",
            )


def _files(path: Path, spec: DatasetSpec) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, others, n=3)
        remedy = f"Did you mean {', '.join(near)}?" if near else "Check file_name and dataset_dir."
        raise DataError(f"data set '{spec.name}': there is no file {path}", fix=remedy)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"data set '{spec.name}': the folder is empty", where=str(path))
    kinds = {_kind(file, spec) for file in files}
    if len(kinds) > 1:
        raise DataError(f"data set '{spec.name}': the folder mixes {', '.join(sorted(kinds))} files", where=str(path))
    return files


def _kind(file: Path, spec: DatasetSpec) -> Kind:
    if file.suffix not in KINDS:
        raise DataError(
            f"data set '{spec.name}': files of kind '{file.suffix}' are not read",
            where=str(file),
            fix=f"Convert it to one of {', '.join(KINDS)}.",
        )
    return KINDS[file.suffix]


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror or error}", where=str(file)) from None


def open_rows(file: SourceFile, index: Path) -> Rows:
    """Open a file by the index that raytune.data.scan.index_file has made of it."""
    if index.suffix == ".arrow":
        return ArrowRows(index)
    return TextRows(file, np.load(index, mmap_mode="r"))


class TextRows:
    """Rows of a JSON, CSV or text file, by the place where each begins and ends."""

    def __init__(self, file: SourceFile, spans: npt.NDArray[np.int64]) -> None:
        self._kind = file.kind
        self._spans = spans  # [R, 2] bytes; a CSV file's header is row 0
        with Path(file.path).open("rb") as opened:
            self._content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._header = self._fields(0) if file.kind == "csv" else []

    def read(self, numbers: Sequence[int]) -> list[Row | InvalidRow]:
        match self._kind:
            case "csv":
                return [self._csv_row(number + 1) for number in numbers]
            case "txt":
                return [{TEXT_COLUMN: self._text(number)} for number in numbers]
            case _:
                return [self._json_row(number) for number in numbers]

    def _bytes(self, number: int) -> bytes:
        start, end = self._spans[number]
        return self._content[start:end]

    def _text(self, number: int) -> str:
        return self._bytes(number).decode("utf-8", "replace")

    def _json_row(self, number: int) -> Row | InvalidRow:
        content = self._bytes(number)
        try:
            row = json.loads(content)
            if b"\\ud" in content or b"\\uD" in content:
                json.dumps(row, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            return InvalidRow(f"not valid JSON: {error.msg} at character {error.pos + 1} of the row")
        except UnicodeDecodeError as error:
            return InvalidRow(f"not UTF-8 text: {error.reason} at byte {error.start + 1} of the row")
        except UnicodeEncodeError:
            return InvalidRow("holds half of a surrogate pair (\\ud800 to \\udfff), which is not a character")
        except RecursionError:
            return InvalidRow("its JSON is nested too deep")
        return row if isinstance(row, dict) else InvalidRow("the row is not a JSON object {column: value}")

    def _csv_row(self, number: int) -> Row | InvalidRow:
        fields = self._fields(number)
        if len(fields) != len(self._header):
            return InvalidRow(f"it has {len(fields)} fields, the header has {len(self._header)}")
        return dict(zip(self._header, fields, strict=True))

    def _fields(self, number: int) -> list[str]:
        return next(csv_reader(StringIO(self._text(number), newline="")), [])


class ArrowRows:
    """Rows of an Arrow IPC file, memory-mapped; only the batches that hold them are touched."""

    def __init__(self, path: Path) -> None:
        opened = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [opened.get_batch(number) for number in range(opened.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def read(self, numbers: Sequence[int]) -> list[Row | InvalidRow]:
        wanted = np.asarray(numbers, dtype=np.int64)
        which = np.searchsorted(self._ends, wanted, side="right")
        rows: list[Row | InvalidRow] = [{}] * len(wanted)
        for number in np.unique(which):
            places = np.flatnonzero(which == number)
            start = int(self._ends[number - 1]) if number else 0
            taken = self._batches[number].take(pa.array(wanted[places] - start))
            for place, row in zip(places, taken.to_pylist(), strict=True):
                rows[place] = row
        return rows
