"""A run on one GPU; skipped where there is none."""

import pytest
import torch

from raytune.config.load import load_config
from raytune.launch import train
from tests.helpers.runs import run_keys

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bf16_on_a_gpu_learns_what_fp32_on_the_cpu_learns(tmp_path, method):
    keys = {"finetuning_type": method, "num_train_epochs": 2, "learning_rate": 0.001}
    gpu = train(load_config(run_keys(tmp_path, **keys, bf16=True, output_dir=str(tmp_path / "gpu"))))
    cpu = train(load_config(run_keys(tmp_path, **keys, use_cpu=True, output_dir=str(tmp_path / "cpu"))))
    assert gpu.results["train"]["train_loss"] == pytest.approx(cpu.results["train"]["train_loss"], rel=0.02)
