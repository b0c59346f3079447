"""TRL's GRPOTrainer as a command: python benchmarks/trl_side.py JOB.json. Imports nothing of raytune.

The job: model, rows (a file of prompts), reward (a file and the name of a function in it), lora (arguments of
LoraConfig, or null), keys (arguments of GRPOConfig), log (a file of JSON lines, one a step).
"""

import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Timed(GRPOTrainer):
    """A GRPOTrainer that notes where the time of a step goes."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        self.laps: dict[str, float] = {}
        super().__init__(*args, **keys)

    def _generate_single_turn(self, *args: Any, **keys: Any) -> Any:
        with self._lap("rollout"):
            return super()._generate_single_turn(*args, **keys)

    def _generate_and_score_completions(self, *args: Any, **keys: Any) -> Any:
        with self._lap("experience"):
            return super()._generate_and_score_completions(*args, **keys)

    def training_step(self, *args: Any, **keys: Any) -> Any:
        with self._lap("train"):
            return super().training_step(*args, **keys)

    @contextlib.contextmanager
    def _lap(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.laps[name] = self.laps.get(name, 0.0) + time.perf_counter() - started


class StepLog(TrainerCallback):
    """Writes a line a step, in the keys that raytune's own log has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trainer: Timed | None = None
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **keys: Any) -> None:
        self._begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **keys: Any) -> None:
        if logs is None or "loss" not in logs or self.trainer is None:
            return
        laps, self.trainer.laps = self.trainer.laps, {}
        # Each of them is inside the next one.
        rollout, experience = laps.get("rollout", 0.0), laps.get("experience", 0.0)
        whole = time.perf_counter() - self._begun
        line = {
            "current_steps": state.global_step,
            "loss": logs["loss"],
            "reward": logs["reward"],
            "completion_length": logs["completions/mean_length"],
            "cut_share": logs["completions/clipped_ratio"],
            "grad_norm": logs["grad_norm"],
            "total_tokens": logs["num_tokens"],
            "time_rollout": rollout,
            "time_experience": experience - rollout,
            "time_train": whole - experience,
        }
        gap = logs.get("sampling/sampling_logp_difference/mean")
        with self._path.open("a") as file:
            file.write(json.dumps(line if gap is None else {**line, "mismatch_abs": gap}) + "\n")


def reward_of(spec: str) -> Callable[..., Any]:
    """The function behind "file.py:name"."""
    file, _, name = spec.rpartition(":")
    found = importlib.util.spec_from_file_location("reward", file)
    if found is None or found.loader is None:
        sys.exit(f"{file} is no Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return vars(module)[name]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    log = StepLog(Path(job["log"]))
    rows = [{"prompt": row["messages"]} for row in json.loads(Path(job["rows"]).read_text())]
    trainer = Timed(
        model=job["model"],
        reward_funcs=reward_of(job["reward"]),
        args=GRPOConfig(**job["keys"]),
        train_dataset=Dataset.from_list(rows),
        callbacks=[log],
        peft_config=LoraConfig(**job["lora"]) if job["lora"] else None,
    )
    log.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
