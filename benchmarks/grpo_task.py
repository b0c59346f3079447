"""The same input for both programs: prompts, model, algorithm; and TRL's interpreter."""

import importlib.metadata
import json
import random
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TRL = "1.16.0"
TORCH = "2.13.0"
SYSTEM = "You are a helpful assistant. Answer at length."
REWARD = f"{ROOT / 'benchmarks' / 'grpo_reward.py'}:different_words"
ROWS = "alpaca_en_demo.json"
# Rows whose own answers are long have questions that the model answers at length too.
_LONG, _SHORT = 800, 160
_VALUES = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class GrpoTask:
    """What both programs are given. Example: GrpoTask(Path("/tmp/b"), "/m", 8, 2, 4, 8, 64, "lora", True, 1e-6, 42)

    Args: prompts: of a step. answers: to each of them. tokens: of an answer at most. bf16: mixed precision, else fp32.
    """

    folder: Path
    model: str
    steps: int
    warmup: int
    prompts: int
    answers: int
    tokens: int
    method: str
    bf16: bool
    learning_rate: float
    seed: int

    @property
    def label(self) -> str:
        return f"{self.method}, {'bf16' if self.bf16 else 'fp32'}"


def write_prompts(source: Path, folder: Path, count: int, seed: int) -> None:
    """Write `count` prompts from alpaca rows with long answers, as a data set of conversations; again from the first
    one when there are not enough."""
    rows = [
        row["instruction"]
        for row in json.loads((source / ROWS).read_text())
        if not row["input"] and len(row["output"]) >= _LONG and len(row["instruction"]) <= _SHORT
    ]
    if not rows:
        sys.exit(f"no row of {source / ROWS} has a short question and a long answer")
    random.Random(seed).shuffle(rows)
    prompts = [{"messages": _conversation(rows[number % len(rows)])} for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    spec = {"file_name": "prompts.json", "formatting": "openai", "columns": {"messages": "messages"}}
    (folder / "dataset_info.json").write_text(json.dumps({"prompts": spec}))


def our_config(task: GrpoTask, output: Path) -> dict[str, Any]:
    """raytune's keys."""
    return {
        "model_name_or_path": task.model,
        "stage": "grpo",
        "finetuning_type": task.method,
        "lora_rank": 8,
        "lora_target": "all",
        "template": "smollm2",
        "dataset_dir": str(task.folder / "data"),
        "dataset": "prompts",
        "cutoff_len": 256,
        "disable_shuffling": True,
        "reward_funcs": REWARD,
        "num_generations": task.answers,
        "max_new_tokens": task.tokens,
        "global_batch_size": task.prompts,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": task.steps,
        "bf16": task.bf16,
        # TRL's formulas, and as there no correction of rollouts: the same update.
        "rl_compat": "trl",
        "rollout_correction": "off",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": task.seed,
        "use_cpu": True,
        "output_dir": str(output),
        "overwrite_output_dir": True,
        # Ranks, engine and reward workers take turns: together they have more threads than there are cores.
        "ray_init_kwargs": {"num_cpus": 8},
    }


def their_job(task: GrpoTask, output: Path, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What benchmarks/trl_side.py reads. Args: extra: further arguments of GRPOConfig; "dtype" is of the weights."""
    extra = dict(extra)
    dtype = extra.pop("dtype", "float32")
    micro = int(extra.pop("micro_batch", 8))
    keys: dict[str, Any] = {
        "output_dir": str(output / "trainer"),
        "use_cpu": True,
        "bf16": task.bf16,
        "model_init_kwargs": {"dtype": dtype, "attn_implementation": "sdpa"},
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": task.prompts * task.answers // micro,
        "num_generations": task.answers,
        "max_completion_length": task.tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "beta": 0.0,
        "num_iterations": 1,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": task.steps,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": task.seed,
    }
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return {
        "model": task.model,
        "rows": str(task.folder / "data" / "prompts.json"),
        "reward": REWARD,
        "lora": lora if task.method == "lora" else None,
        "keys": {**keys, **extra},
        "log": str(output / "trainer_log.jsonl"),
    }


def parsed(settings: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE as Python values. Example: parsed(("bf16=true", "micro_batch=8"))"""
    pairs = [setting.partition("=")[::2] for setting in settings]
    return {key: _VALUES[value] if value in _VALUES else _number(value) for key, value in pairs}


def trl_python(cache: Path, *, apart: bool) -> Path:
    """An interpreter with this TRL: the running one if it has it, else one of a virtual environment in `cache`.

    Args: apart: the latter in any case. It has no vLLM, which TRL imports, with what that changes, where it finds it.
    """
    if not apart and _is_here("trl", TRL) and _is_here("torch", TORCH):
        return Path(sys.executable)
    python = cache / "venv" / "bin" / "python"
    ready = cache / f"ready-{TRL}"
    if not ready.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        venv.create(cache / "venv", with_pip=True, clear=True)
        packages = [f"torch=={TORCH}", f"trl=={TRL}", "peft"]
        command = [str(python), "-m", "pip", "--quiet", "install", "-c", str(ROOT / "constraints.txt"), *packages]
        print(*command[1:], file=sys.stderr, flush=True)
        subprocess.run(command, check=True, timeout=3600)
        ready.touch()
    return python


def _is_here(package: str, version: str) -> bool:
    try:
        return importlib.metadata.version(package).split("+")[0] == version
    except importlib.metadata.PackageNotFoundError:
        return False


def _conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
