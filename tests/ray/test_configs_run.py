"""Every shipped training config takes two steps, on a tiny model in the place of the one it names."""

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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_takes_two_steps(path, tmp_path):
    overrides = [
        f"model_name_or_path={tiny_model_folder(tmp_path / 'model')}",
        f"dataset_dir={ROOT / 'data'}",
        f"data_cache_dir={tmp_path / 'cache'}",
        f"output_dir={tmp_path / 'out'}",
        "template=chatml",
        "cutoff_len=256",
        "max_steps=2",
    ]
    summary = train(load_config(path, overrides))
    assert summary.results["train"]["train_loss"] > 0
    assert list(summary.folder.glob("*.safetensors"))
