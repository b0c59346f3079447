"""Every shipped training config takes its first steps, on a tiny model in the place of the one it names."""

import json
from pathlib import Path

import pytest

from raytune.config.load import load_config
from raytune.launch import train
from tests.helpers.tiny import tiny_model_folder

pytestmark = pytest.mark.usefixtures("ray_local")

ROOT = Path(__file__).parents[2]
CONFIGS = [
    ROOT / "configs/demo.yaml",
    *sorted((ROOT / "configs/sft").glob("smollm2_*.yaml")),
    ROOT / "configs/pt/smollm2_pt.yaml",
]
GRPO = sorted((ROOT / "configs/grpo").glob("*.yaml"))
# Long runs of small batches are not the point; the engine is, in other tests.
SMALL = ["max_steps=3", "logging_steps=1", "rollout_backend=hf", "per_device_train_batch_size=2", "cpus_per_worker=1"]


def overrides(folder: Path) -> list[str]:
    return [
        f"model_name_or_path={tiny_model_folder(folder / 'model', max_positions=1024)}",
        f"dataset_dir={ROOT / 'data'}",
        f"data_cache_dir={folder / 'cache'}",
        "template=chatml",
        "cutoff_len=512",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_takes_two_steps(path, tmp_path):
    summary = train(load_config(path, [*overrides(tmp_path), f"output_dir={tmp_path / 'out'}", "max_steps=2"]))
    assert summary.results["train"]["train_loss"] > 0
    assert list(summary.folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and cache of all runs that learn from rewards."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("path", GRPO, ids=lambda path: path.stem)
def test_grpo_takes_three_steps(path, small):
    keys = [*overrides(small), *SMALL, "num_generations=4", "max_new_tokens=8", f"output_dir={small / path.stem}"]
    folder = train(load_config(path, keys)).folder
    for line in assert_took_three_steps(folder):
        assert ("reward_greedy" in line) == (path.stem == "remax")


def test_a_reward_model_and_ppo_take_three_steps(small):
    judge = train(
        load_config(
            ROOT / "configs/rm/smollm2_arithmetic.yaml",
            [*overrides(small), "max_steps=3", "max_samples=16", f"output_dir={small / 'rm'}"],
        )
    )
    assert judge.results["train"]["train_loss"] > 0
    path = ROOT / "configs/ppo/smollm2_arithmetic.yaml"
    keys = [
        *overrides(small),
        *SMALL,
        "max_new_tokens=8",
        f"reward_model={judge.folder}",
        f"output_dir={small / 'ppo'}",
    ]
    assert_took_three_steps(train(load_config(path, keys)).folder)


def assert_took_three_steps(folder: Path) -> list[dict[str, float]]:
    """Returns what the log says of the steps."""
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert [line["current_steps"] for line in steps] == [1, 2, 3]
    assert all(line["mismatch_abs"] < 0.05 for line in steps)
    assert list(folder.glob("*.safetensors"))
    return steps
