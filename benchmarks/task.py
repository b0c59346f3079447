"""The same input for both programs: rows, model folders, settings, and the number of tokens in each row."""

import json
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.opponent import Opponent

DATASETS = ("identity.json", "alpaca_en_demo.json")
WEIGHTS = ("float32", "bfloat16")

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Task:
    """What both programs are given. Example: Task(Path("/tmp/b"), "float32", 256, 2, 2, 40, 5, 1e-4, 42)"""

    folder: Path
    weights: str
    cutoff_len: int
    micro_batch: int
    accumulation: int
    steps: int
    warmup: int
    learning_rate: float
    seed: int

    @property
    def batch(self) -> int:
        return self.micro_batch * self.accumulation


@dataclass(frozen=True, slots=True)
class Tokens:
    """Length of each row in tokens and how many of them have a label, in the order of the rows."""

    lengths: list[int]
    trained: list[int]


def write_rows(source: Path, folder: Path, count: int, seed: int) -> None:
    """Write a data set folder with the first `count` rows of the shuffled demo sets."""
    rows = [row for name in DATASETS for row in json.loads((source / name).read_text())]
    if count > len(rows):
        sys.exit(f"{count} rows are wanted, {' and '.join(DATASETS)} have {len(rows)}; take fewer steps")
    random.Random(seed).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows[:count]))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))


def write_models(folder: Path) -> None:
    """Make the embedded model once in each type: LLaMA-Factory computes in the type that it finds in the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    from raytune.models.embedded import resolve_model_path

    source = resolve_model_path("smollm2-135m-instruct")
    for name in WEIGHTS:
        target = folder / f"model-{name}"
        if target.is_dir():
            continue
        temporary = folder / f".model-{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        shutil.copytree(source, temporary)
        AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(temporary)
        temporary.rename(target)


def config_of(task: Task, output: Path) -> dict[str, Value]:
    """The settings both programs read, in the keys they share."""
    return {
        "model_name_or_path": str(task.folder / f"model-{task.weights}"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "template": "smollm2",
        "dataset_dir": str(task.folder / "data"),
        "dataset": "rows",
        "cutoff_len": task.cutoff_len,
        "disable_shuffling": True,
        "per_device_train_batch_size": task.micro_batch,
        "gradient_accumulation_steps": task.accumulation,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": task.steps,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": task.seed,
        # LLaMA-Factory refuses bf16 on a machine without a GPU unless it is told so.
        "use_cpu": True,
        "output_dir": str(output),
        "overwrite_output_dir": True,
    }


def count_tokens(opponent: Opponent, task: Task) -> Tokens:
    """Lengths of the prepared rows, read from what LLaMA-Factory itself writes for `tokenized_path`."""
    prepared, config = task.folder / f"tokenized-{task.cutoff_len}", task.folder / "tokenize.yaml"
    shutil.rmtree(prepared, ignore_errors=True)
    # Without do_train it stops when the rows are written; with it, it would go on and train.
    settings = {**config_of(task, task.folder / "tokenize"), "tokenized_path": str(prepared), "do_train": False}
    config.write_text(yaml.safe_dump(settings))
    opponent.run("train", str(config))
    code = (
        "import json, sys, datasets; rows = datasets.load_from_disk(sys.argv[1])['train'];"
        "print(json.dumps([[len(r['input_ids']), sum(x != -100 for x in r['labels'])] for r in rows]))"
    )
    pairs = json.loads(opponent.ask(code, str(prepared)))
    return Tokens([pair[0] for pair in pairs], [pair[1] for pair in pairs])
