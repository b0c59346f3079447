"""What is published, loaded into a plain transformers model, answers as the model that trains."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPT2Config, GPT2LMHeadModel

from raytune.config.adapter import AdapterConfig
from raytune.errors import ModelError
from raytune.models.entries import buckets_of
from raytune.models.freeze import freeze_but_layers
from raytune.models.published import Published
from tests.helpers.tiny import tiny_experts, tiny_model
from tests.helpers.weights import randomize_lora, with_lora

IDS = torch.arange(3, 35).reshape(2, 16)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS % model.config.vocab_size).logits


def loaded(trained: Any, plain: Any) -> Any:
    """`plain` with what is published of `trained`; names that it does not have, or lacks, are an error."""
    weights = {entry.name: value for entry, value in Published(trained).tensors()}
    missing, unexpected = plain.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return plain


def adapted(model: Any, targets: Any, **keys: Any) -> Any:
    wrapped: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, **keys)).eval()
    randomize_lora(wrapped, 3)
    return wrapped


@pytest.mark.parametrize("tied", [True, False])
def test_full_models_answer_alike(tied: bool) -> None:
    trained = tiny_model(tied=tied, seed=1)
    names = [entry.name for entry in Published(trained).entries]
    assert ("lm_head.weight" in names) is not tied
    torch.testing.assert_close(logits(loaded(trained, tiny_model(tied=tied))), logits(trained), atol=1e-5, rtol=0)


def test_frozen_layers_are_published_too() -> None:
    trained = tiny_model(seed=1)
    freeze_but_layers(trained, AdapterConfig(finetuning_type="freeze", freeze_trainable_layers=1))
    torch.testing.assert_close(logits(loaded(trained, tiny_model())), logits(trained), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_are_merged_and_the_model_is_left_alone(tied: bool) -> None:
    trained = with_lora(tiny_model(tied=tied, seed=1), seed=3)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with trained.disable_adapter():
        assert not torch.allclose(logits(trained), logits(tiny_model(tied=tied)), atol=1e-3)
    torch.testing.assert_close(logits(loaded(trained, tiny_model(tied=tied))), logits(trained), atol=1e-5, rtol=0)
    after = trained.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_embeddings_and_conv1d_hold_their_weight_the_other_way_round() -> None:
    def gpt2(seed: int) -> Any:
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32, tie_word_embeddings=False)
        return GPT2LMHeadModel(config).eval()

    trained = adapted(gpt2(1), ["c_attn", "c_proj", "wte"], fan_in_fan_out=True)
    torch.testing.assert_close(logits(loaded(trained, gpt2(0))), logits(trained), atol=1e-5, rtol=0)


def test_modules_that_train_whole_take_the_place_of_the_originals() -> None:
    trained = adapted(tiny_model(seed=1), ["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    with torch.no_grad():
        trained.get_input_embeddings().weight.add_(0.05)
    torch.testing.assert_close(logits(loaded(trained, tiny_model())), logits(trained), atol=1e-5, rtol=0)


def test_tied_embeddings_that_train_whole_stay_tied() -> None:
    trained = adapted(
        tiny_model(tied=True, seed=1), ["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    with torch.no_grad():
        trained.get_input_embeddings().weight.add_(0.05)
    torch.testing.assert_close(logits(loaded(trained, tiny_model(tied=True))), logits(trained), atol=1e-5, rtol=0)


def test_an_adapter_on_one_end_of_a_tie_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.embed_tokens.weight is tied to another weight"):
        Published(adapted(tiny_model(tied=True), ["q_proj", "embed_tokens"]))


def test_adapters_that_cannot_be_added_are_refused() -> None:
    with pytest.raises(ModelError, match="cannot be added into its base weight"):
        Published(adapted(tiny_model(), ["q_proj"], use_dora=True))


def test_weights_are_cast_once_from_their_float32_sum() -> None:
    trained = with_lora(tiny_model(seed=1), seed=3).to(torch.bfloat16)
    layer = trained.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    expected = (layer.base_layer.weight.float() + 2.0 * b @ a).to(torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj.weight"
    found = {entry.name: value.to(entry.torch_dtype) for entry, value in Published(trained).tensors()}
    assert torch.equal(found[name], expected)


def test_experts_have_the_names_and_shapes_of_the_checkpoint(tmp_path: Path) -> None:
    model = tiny_experts()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        published = {entry.name: value for entry, value in Published(model).tensors()}
        assert published.keys() == set(file.keys())
        assert all(torch.equal(file.get_tensor(name), value) for name, value in published.items())


@pytest.fixture
def _group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group_of_one")
@pytest.mark.parametrize("lora", [True, False])
def test_shards_are_published_whole(lora: bool) -> None:
    whole = tiny_model(tied=True, seed=1)
    trained: Any = with_lora(whole, seed=3) if lora else whole
    expected = {entry.name: value.clone() for entry, value in Published(trained).tensors()}
    mesh = init_device_mesh("cpu", (1,))
    base: Any = trained.get_base_model() if isinstance(trained, PeftModel) else trained
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(trained, mesh=mesh)
    published = Published(trained)
    assert list(published.tensors(keep=False)) == []
    found = {entry.name: value for entry, value in published.tensors()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_order_is_that_of_the_model() -> None:
    first, second = (Published(tiny_model(seed=seed)).entries for seed in (0, 1))
    assert first == second
    assert first[0].name == "model.embed_tokens.weight"
    assert sum(entry.num_bytes for entry in first) == 4 * sum(p.numel() for p in tiny_model().parameters())


def test_buckets_are_full_but_not_too_full() -> None:
    assert buckets_of([4, 4, 4, 20, 1], 8) == [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    assert buckets_of([], 8) == []
