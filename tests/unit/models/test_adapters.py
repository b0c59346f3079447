"""LoRA, freeze and full: what trains, in which dtype, and what merging adds up to."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, load_peft_weights
from torch import Tensor

from raytune.config.adapter import AdapterConfig
from raytune.errors import ModelError
from raytune.models.adapters import attach, merge
from raytune.models.loader import count_parameters
from tests.helpers.tiny import tiny_model

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(3, 35).reshape(2, 16)
Q_PROJ = "model.layers.0.self_attn.q_proj"


def put(model: Any = None, *, dtype: torch.dtype = torch.float32, **keys: Any) -> Any:
    """A tiny model with the adapter that `keys` describe."""
    options = {name: keys.pop(name) for name in ("is_trainable", "train_embeddings") if name in keys}
    return attach(model or tiny_model(), AdapterConfig(**keys), trainable_dtype=dtype, **options)


def training(model: Any) -> set[str]:
    return {name for name, param in model.named_parameters() if param.requires_grad}


def adapter_folder(path: Path, seed: int, **keys: Any) -> Path:
    """An adapter on disk whose B matrices are not zero."""
    model = put(**keys)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.copy_(0.05 * torch.randn(param.shape, generator=generator))
    model.save_pretrained(path)
    return path


def delta(folder: Path, module: str) -> Tensor:
    """scale * B @ A as the files say."""
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = load_peft_weights(str(folder))
    a, b = (weights[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
    return config["lora_alpha"] / config["r"] * b @ a


def test_all_is_every_linear_but_the_head() -> None:
    model = put()
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in training(model)} == LINEAR
    assert model.peft_config["default"].target_modules == LINEAR


def test_lora_size() -> None:
    # rank * (inputs + outputs) for q, k, v, o, gate, up, down of each of the two layers
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert count_parameters(put(lora_rank=4))[0] == 2 * sum(4 * (inputs + outputs) for inputs, outputs in shapes)


def test_adapters_are_float32_over_a_half_precision_base() -> None:
    model = put(tiny_model().to(torch.float16))
    dtypes = {(param.requires_grad, param.dtype) for param in model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.float16)}
    pure = put(tiny_model().to(torch.bfloat16), dtype=torch.bfloat16)
    assert {param.dtype for param in pure.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"lora_rank": 4}, 2.0),  # alpha is twice the rank
        ({"lora_rank": 4, "lora_alpha": 6}, 6 / 4),
        ({"lora_rank": 4, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(4)),
    ],
)
def test_scale(keys: dict[str, Any], scale: float) -> None:
    layer = put(**keys).get_submodule(f"base_model.model.{Q_PROJ}")
    assert layer.scaling["default"] == pytest.approx(scale)


def test_dropout_is_set() -> None:
    layer = put(lora_dropout=0.25).get_submodule(f"base_model.model.{Q_PROJ}")
    assert layer.lora_dropout["default"].p == 0.25


def test_targets_by_name_and_pattern() -> None:
    named = training(put(lora_target=("q_proj", "mlp.up_proj")))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in named} == {"q_proj", "up_proj"}
    matched = training(put(lora_target=(r".*layers\.1\..*(q|v)_proj",)))
    assert len(matched) == 4
    assert all("layers.1.self_attn" in name for name in matched)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lora_target": ("query",)}, r"lora_target: this llama model has no module 'query'.*q_proj"),
        ({"lora_target": ("q_proj", "proj")}, "no module 'proj'"),
        ({"lora_target": (".*query",)}, r"matches no module.*q_proj"),
        ({"lora_target": ("(",)}, "not a regular expression"),
        ({"additional_target": ("wte",)}, r"additional_target: .*'wte'.*embed_tokens"),
        ({"finetuning_type": "freeze", "freeze_extra_modules": ("wte",)}, r"freeze_extra_modules.*embed_tokens"),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": ("wte",)}, r"freeze_trainable_modules.*q_proj"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "nothing to train"),
    ],
)
def test_what_is_not_there(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        put(**keys)


def test_additional_target_trains_whole_modules() -> None:
    whole = {name for name in training(put(additional_target=("embed_tokens", "lm_head"))) if "lora_" not in name}
    assert whole == {
        "base_model.model.model.embed_tokens.modules_to_save.default.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
    }
    grown = {name for name in training(put(train_embeddings=True)) if "lora_" not in name}
    assert grown == whole


def test_tied_embeddings_stay_tied() -> None:
    model = put(tiny_model(tied=True), additional_target=("embed_tokens",))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_freeze_trains_the_last_layers() -> None:
    model = put(finetuning_type="freeze", freeze_trainable_layers=1)
    assert training(model) == {name for name, _ in model.named_parameters() if name.startswith("model.layers.1.")}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"freeze_trainable_layers": -1}, lambda name: "layers.0." in name),
        ({"freeze_trainable_layers": 9}, lambda name: "layers." in name),
        ({"freeze_trainable_layers": 1, "freeze_trainable_modules": ("mlp",)}, lambda name: "layers.1.mlp." in name),
        (
            {"freeze_trainable_layers": 1, "freeze_extra_modules": ("embed_tokens", "lm_head")},
            lambda name: "layers.1." in name or "embed_tokens" in name or "lm_head" in name,
        ),
        ({"freeze_trainable_layers": 0, "freeze_extra_modules": ("all",)}, lambda name: "layers." not in name),
    ],
)
def test_freeze_choices(keys: dict[str, Any], expected: Any) -> None:
    model = put(finetuning_type="freeze", **keys)
    assert training(model) == {name for name, _ in model.named_parameters() if expected(name)}


def test_freeze_reaches_a_tied_head() -> None:
    model = put(tiny_model(tied=True), finetuning_type="freeze", freeze_extra_modules=("lm_head",))
    assert "model.embed_tokens.weight" in training(model)


def test_full_trains_everything_in_float32() -> None:
    model = put(tiny_model().to(torch.bfloat16), finetuning_type="full")
    assert training(model) == {name for name, _ in model.named_parameters()}
    assert {param.dtype for param in model.parameters()} == {torch.float32}


def test_new_adapter_changes_nothing_yet() -> None:
    torch.testing.assert_close(put()(IDS).logits, tiny_model()(IDS).logits, rtol=0, atol=0)


def test_last_adapter_is_trained_on_over_the_others(tmp_path: Path) -> None:
    first = adapter_folder(tmp_path / "first", 1, lora_rank=4)
    second = adapter_folder(tmp_path / "second", 2, lora_rank=2, lora_target=("q_proj",))
    model = put(adapter_name_or_path=(str(first), str(second)))
    assert model.peft_config["default"].r == 2
    assert all("q_proj.lora_" in name for name in training(model))
    base = tiny_model().get_submodule(Q_PROJ).weight
    layer = model.get_submodule(f"base_model.model.{Q_PROJ}")
    torch.testing.assert_close(layer.base_layer.weight, base + delta(first, Q_PROJ))
    torch.testing.assert_close(
        merge(model).get_submodule(Q_PROJ).weight, base + delta(first, Q_PROJ) + delta(second, Q_PROJ)
    )


def test_create_new_adapter_merges_all_and_starts_anew(tmp_path: Path) -> None:
    first = adapter_folder(tmp_path / "first", 1, lora_rank=4)
    model = put(adapter_name_or_path=(str(first),), create_new_adapter=True, lora_rank=2)
    assert model.peft_config["default"].r == 2
    layer = model.get_submodule(f"base_model.model.{Q_PROJ}")
    torch.testing.assert_close(
        layer.base_layer.weight, tiny_model().get_submodule(Q_PROJ).weight + delta(first, Q_PROJ)
    )
    assert not layer.lora_B["default"].weight.any()


def test_for_use_alone_nothing_trains(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "first", 1)
    assert not training(put(adapter_name_or_path=(str(folder),), is_trainable=False))
    model = tiny_model()
    assert put(model, is_trainable=False) is model


def test_merged_model_answers_like_base_and_adapter(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "first", 1, additional_target=("lm_head",))
    model = put(adapter_name_or_path=(str(folder),), is_trainable=False).eval()
    before = model(IDS).logits
    torch.testing.assert_close(merge(model)(IDS).logits, before, atol=1e-5, rtol=1e-5)
    assert float((before - tiny_model()(IDS).logits).detach().abs().max()) > 1e-2


def test_merge_rounds_once(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "first", 1)
    model = put(tiny_model().to(torch.bfloat16), adapter_name_or_path=(str(folder),), is_trainable=False)
    base = tiny_model().get_submodule(Q_PROJ).weight.to(torch.bfloat16)
    expected = (base.float() + delta(folder, Q_PROJ)).to(torch.bfloat16)
    torch.testing.assert_close(merge(model).get_submodule(Q_PROJ).weight, expected, rtol=0, atol=0)


def test_subfolder_and_wrong_folders(tmp_path: Path) -> None:
    adapter_folder(tmp_path / "checkpoint-10", 1)
    model = put(adapter_name_or_path=(str(tmp_path),), adapter_folder="checkpoint-10")
    assert isinstance(model, PeftModel)
    with pytest.raises(ModelError, match=r"has no adapter_config.json.*Did you mean .*checkpoint-10"):
        put(adapter_name_or_path=(str(tmp_path),))
    with pytest.raises(ModelError, match="does not exist"):
        put(adapter_name_or_path=(str(tmp_path / "gone"),))


def test_damaged_adapter(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "first", 1)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ModelError, match="cannot be put on the model"):
        put(adapter_name_or_path=(str(folder),))


def test_adapter_of_another_model(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "first", 1)
    with pytest.raises(ModelError, match=r"cannot be put on the model.*trained on"):
        put(tiny_model(hidden=32), adapter_name_or_path=(str(folder),))


def test_adapters_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = tiny_model()
    assert count_parameters(put(model)) == count_parameters(put())
