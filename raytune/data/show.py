"""What the model will see: the first prepared rows, as text with the trained tokens marked, or as JSON."""

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from raytune.config.run import RunConfig
from raytune.data.inputs import DataOptions, find_inputs
from raytune.data.pipeline import BlockEncoder, make_plan
from raytune.data.prepared import open_prepared
from raytune.data.reports import Reports
from raytune.data.scan import index_file
from raytune.data.store import BESIDE, COLUMNS, RowStore
from raytune.errors import DataError
from raytune.types import IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Columns = dict[str, Any]
"""Column -> values of one row: lists of numbers and, of a prompt, a mapping `columns`."""

_COLOUR = ("\x1b[32m", "\x1b[0m")
_BRACKETS = ("[[", "]]")


def show_rows(
    cfg: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    rows: int = 5,
    as_json: bool = False,
    out: TextIO | None = None,
) -> None:
    """Print the first `rows` rows of the training set (the evaluation set where there is no training set).

    As text, trained tokens stand in colour on a terminal and in [[brackets]] elsewhere. As JSON, each line is one row
    with input_ids, labels and, for packed rows, position_ids and attention_mask; a prompt's with input_ids and columns.

    Raises: DataError for a data set, row or template that is broken.
    """
    out = out or sys.stdout
    marks = _COLOUR if out.isatty() else _BRACKETS
    for number, row in enumerate(islice(first_rows(cfg, tokenizer), rows)):
        out.write((json.dumps(row) if as_json else _text(number, row, tokenizer, marks)) + "\n")


def first_rows(cfg: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Columns]:
    """Yield prepared rows in their order, making them in this process, block by block, as far as they are asked for."""
    given = Path(cfg.data.tokenized_path).expanduser() if cfg.data.tokenized_path else None
    if given is not None and given.is_dir() and any(given.iterdir()):
        yield from _stored(given)
        return
    options = DataOptions.of(cfg)
    inputs = find_inputs(options)
    indexed = [index_file(file, options.cache, token=options.hub_token) for file in inputs.files]
    with TemporaryDirectory(prefix="raytune-show-") as folder:
        plan = make_plan(options, inputs, indexed, Path(folder))
        encoder = BlockEncoder(options, plan, Path(folder), tokenizer)
        reports = Reports(plan, skip_invalid=options.dataio.skip_invalid)
        for split, number in plan.blocks:
            if split == 0:
                encoded, report = encoder.rows(split, number)
                reports.add(report)
                reports.check_rows()
                yield from map(_shown, encoded)


def _stored(folder: Path) -> Iterator[Columns]:
    stores = open_prepared(folder).stores
    if not stores:
        raise DataError("the folder holds no rows", where=str(folder))
    store = RowStore.open(stores[0])
    for number in range(len(store)):
        lists = {name: values.tolist() for name, values in store.row(number).items()}
        yield lists if "labels" in lists else {**lists, BESIDE: store.columns(number)}


def _text(number: int, row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", marks: tuple[str, str]) -> str:
    if BESIDE in row:
        beside = "\n".join(f"{name}: {json.dumps(value)}" for name, value in row[BESIDE].items())
        text = str(tokenizer.decode(row["input_ids"], skip_special_tokens=False))
        return f"--- row {number}: prompt of {len(row['input_ids'])} tokens\n{text}\n--- for rewards\n{beside}"
    trained = np.asarray(row["labels"]) != IGNORE_INDEX
    samples = max(row.get("attention_mask", [1]))
    packed = f", {samples} samples" if "attention_mask" in row else ""
    parts = [f"--- row {number}: {len(trained)} tokens, {int(trained.sum())} trained{packed}\n"]
    for is_trained, group in groupby(zip(trained, row["input_ids"], strict=True), key=lambda pair: bool(pair[0])):
        text = str(tokenizer.decode([token for _, token in group], skip_special_tokens=False))
        parts.append(f"{marks[0]}{text}{marks[1]}" if is_trained else text)
    return "".join(parts)


def _shown(row: Encoded) -> Columns:
    if row.columns:
        return {"input_ids": list(row.input_ids), BESIDE: json.loads(row.columns)}
    columns = (row.input_ids, row.labels, row.position_ids, row.attention_mask)
    kept = {name: list(values) for name, values in zip(COLUMNS, columns, strict=True) if values}
    return {"input_ids": [], "labels": [], **kept}
