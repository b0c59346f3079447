"""Short grpo runs: a tiny model that draws with transformers, and a reward that is a function of the text alone."""

from pathlib import Path
from typing import Any

from tests.helpers.runs import run_keys

REWARDS = '''
import os, pathlib, signal, time

def letters(completions, **columns):
    """How many of the characters are letters: it differs between answers, whatever the model has learned."""
    return [sum(c.isalpha() for c in text) / (1 + len(text)) for text in completions]
'''


def grpo_keys(folder: Path, **keys: Any) -> dict[str, Any]:
    """Flat keys of a grpo run of four steps of two prompts with three answers each, saved after every step."""
    rewards = folder / "rewards.py"
    if not rewards.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rewards.write_text(REWARDS)
    return run_keys(
        folder,
        **{
            "stage": "grpo",
            "rollout_backend": "hf",
            "reward_funcs": f"{rewards}:letters",
            "global_batch_size": 2,
            "per_device_train_batch_size": 2,
            "num_generations": 3,
            "max_new_tokens": 8,
            "max_steps": 4,
            "save_steps": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "cpus_per_worker": 1,
            **keys,
        },
    )
