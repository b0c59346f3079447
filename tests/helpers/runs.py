"""Small real runs: a tiny model folder, a data set of a few dozen rows, and a config over both."""

import json
import random
from pathlib import Path
from typing import Any

from raytune.config.load import load_config
from raytune.config.run import RunConfig
from tests.helpers.tiny import tiny_model_folder

WORDS = [
    "red",
    "green",
    "blue",
    "small",
    "large",
    "old",
    "new",
    "cat",
    "dog",
    "house",
    "tree",
    "river",
    "runs",
    "sings",
]


def write_rows(folder: Path, *, num_rows: int = 24, name: str = "words") -> Path:
    """An alpaca data set of short random sentences of different lengths, registered in dataset_info.json."""
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "instruction": f"say {index} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 4))),
            "input": "",
            "output": " ".join(rng.choices(WORDS, k=rng.randint(1, 8))),
        }
        for index in range(num_rows)
    ]
    (folder / f"{name}.json").write_text(json.dumps(rows))
    info = folder / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    info.write_text(json.dumps({**known, name: {"file_name": f"{name}.json"}}))
    return folder


def write_pairs(folder: Path, *, count: int) -> None:
    """Pairs of which the polite answer was chosen, registered as `pairs`."""
    rows = [
        {
            "conversations": [{"from": "human", "value": f"question {number}"}],
            "chosen": {"from": "gpt", "value": "please" + "." * (number % 5)},
            "rejected": {"from": "gpt", "value": "never" + "." * (number % 3)},
        }
        for number in range(count)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "pairs.json", "ranking": True, "formatting": "sharegpt", "columns": columns}
    info = folder / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    info.write_text(json.dumps({**known, "pairs": entry}))


def run_keys(folder: Path, **keys: Any) -> dict[str, Any]:
    """Flat keys of a short LoRA run in fp32 below `folder`; the model and the data are made on first use."""
    model = folder / "model"
    if not model.exists():
        tiny_model_folder(model)
    if not (folder / "data").exists():
        write_rows(folder / "data")
    return {
        "model_name_or_path": str(model),
        "template": "chatml",
        "dataset": "words",
        "dataset_dir": str(folder / "data"),
        "data_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
        "cutoff_len": 128,
        "preprocessing_num_workers": 1,
        "global_batch_size": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "lora_rank": 4,
        "report_to": "none",
        "disable_tqdm": True,
        **keys,
    }


def run_config(folder: Path, **keys: Any) -> RunConfig:
    """The same as a RunConfig."""
    return load_config(run_keys(folder, **keys)).config
