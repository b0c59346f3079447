"""Small data sets, and everything that prepares them, in this process."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from raytune.config.load import load_config
from raytune.data.inputs import DataOptions, cache_key, find_inputs
from raytune.data.pipeline import BlockEncoder, make_plan
from raytune.data.prepared import PreparedData, begin_build, publish
from raytune.data.reports import Reports
from raytune.data.scan import index_file
from raytune.data.store import RowStore


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
