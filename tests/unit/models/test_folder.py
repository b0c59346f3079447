"""What has to lie in the folder of a reward model."""

from pathlib import Path

import pytest

from raytune.errors import ModelError
from raytune.models.folder import reward_folder

HEAD = "value_head.safetensors"


def folder(path: Path, *files: str) -> str:
    path.mkdir()
    for name in files:
        (path / name).write_text("{}")
    return str(path)


def test_the_head_lies_with_the_last_adapter_or_the_model(tmp_path):
    adapter = folder(tmp_path / "adapter", "adapter_config.json", HEAD)
    whole = folder(tmp_path / "whole", "config.json", HEAD)
    base = folder(tmp_path / "base", "config.json")
    assert str(reward_folder(adapter, "lora")) == adapter
    assert str(reward_folder(whole, "full")) == whole
    assert str(reward_folder(base, "full", [adapter])) == adapter


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        (("config.json", HEAD), "lora", "is a whole model, and reward_model_type is lora. Set reward_model_type: full"),
        (("adapter_config.json", HEAD), "full", "is an adapter, and reward_model_type is full. Set .*: lora"),
        (("adapter_config.json",), "lora", "it has no value_head.safetensors. Name the output_dir of a run of stage"),
        (("config.json",), "full", "it has no value_head.safetensors"),
    ],
)
def test_what_is_no_reward_model_is_refused_with_a_remedy(tmp_path, files, kind, said):
    with pytest.raises(ModelError, match=said):
        reward_folder(folder(tmp_path / "m", *files), kind)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere' does not exist"):
        reward_folder(str(tmp_path / "nowhere"), "lora")
