"""Short runs of this process's own Ray, and what they leave."""

import json
import shutil
from pathlib import Path
from typing import Any

from raytune.config.load import load_config
from raytune.engine.checkpoint import CheckpointStore
from raytune.launch import Summary, train
from tests.helpers.runs import run_keys

WEIGHTS = "adapter_model.safetensors"
LONG = {"num_train_epochs": 10, "save_steps": 3}
"""A run of 30 steps, ten epochs of three; every third step is saved."""


def run(home: Path, **keys: Any) -> Summary:
    """Train with the keys of a short run below `home`."""
    return train(load_config(run_keys(home, **keys)))


def losses(folder: Path) -> list[float]:
    """The training losses that a run logged."""
    lines = (folder / "trainer_log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def cut_after(step: int, finished: Path, folder: Path) -> Path:
    """Copy a finished run into `folder` as if it had ended right after it saved `step`."""
    shutil.copytree(finished, folder)
    CheckpointStore(folder).drop_after(step)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*_results.json")]:
        path.unlink()
    return folder
