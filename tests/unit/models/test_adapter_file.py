"""An adapter as a folder: peft reads it back, damage is found, and what engines do not take is said beforehand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from raytune.errors import RolloutError
from raytune.models.adapter_file import gather_adapter, obstacle, write_adapter
from raytune.models.adapter_folder import WEIGHTS, read_files, verify_adapter, write_files
from tests.helpers.tiny import tiny_model
from tests.helpers.weights import with_lora

IDS = torch.arange(3, 35).reshape(2, 16)


def written(model: Any, folder: Path, dtype: torch.dtype | None = None) -> Path:
    write_adapter(model, gather_adapter(model, keep=True), folder, dtype=dtype)
    return folder


def test_peft_reads_it_back(tmp_path: Path) -> None:
    trained = with_lora(tiny_model(), seed=3)
    again: Any = PeftModel.from_pretrained(tiny_model(), str(written(trained, tmp_path / "adapter"))).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, trained(input_ids=IDS).logits)
    assert trained.peft_config["default"].inference_mode is False


def test_damage_is_found(tmp_path: Path) -> None:
    folder = written(with_lora(tiny_model(), seed=3), tmp_path / "adapter", torch.bfloat16)
    verify_adapter(folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(RolloutError, match="is damaged"):
        verify_adapter(folder)
    with pytest.raises(RolloutError, match="cannot be read"):
        verify_adapter(tmp_path / "nothing")


def test_it_travels_as_bytes(tmp_path: Path) -> None:
    files = read_files(written(with_lora(tiny_model(), seed=3), tmp_path / "here"))
    write_files(tmp_path / "there", files)
    assert read_files(tmp_path / "there") == files
    with pytest.raises(RolloutError, match="is damaged"):
        write_files(tmp_path / "broken", {**files, WEIGHTS: files[WEIGHTS][:-1] + b"x"})
    assert not (tmp_path / "broken").exists()


def test_the_folder_of_a_run_that_is_over_stays_gone(tmp_path: Path) -> None:
    files = read_files(written(with_lora(tiny_model(), seed=3), tmp_path / "here"))
    with pytest.raises(FileNotFoundError):
        written(with_lora(tiny_model()), tmp_path / "run" / "adapter-1")
    with pytest.raises(FileNotFoundError):
        write_files(tmp_path / "run" / "adapter-1", files)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, None),
        ({"modules_to_save": ["lm_head"]}, "do not take modules_to_save"),
        ({"use_dora": True}, "do not take use_dora: True"),
        ({"bias": "all"}, "do not take bias: all"),
        ({"rank_pattern": {"q_proj": 64}}, "rank 64 is larger than the engine's 16"),
    ],
)
def test_what_engines_do_not_take_is_said(keys: dict[str, Any], reason: str | None) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj"], **keys)
    found = obstacle(get_peft_model(tiny_model(), config), max_rank=16)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_model_without_adapter_sends_all_its_weights() -> None:
    assert "there is no adapter" in (obstacle(tiny_model()) or "")
