import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from raytune.models.fused_lora import fuse_lora, trains_fused_only
from tests.helpers.tiny import tiny_model

IDS = torch.tensor([[5, 9, 13, 200, 7], [1, 2, 3, 4, 6]])
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(dtype: torch.dtype = torch.float32, **keys: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(tiny_model().to(dtype), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **keys))
    for name, param in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.1)  # fresh adapters are zero, and would hide a wrong product
    return model.train()


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def test_equals_pefts_own_forward_and_gradients():
    plain = lora()
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 2 * len(TARGETS)
    expected_loss, expected = loss_and_gradients(plain)
    loss, found = loss_and_gradients(fused)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16_base_keeps_float32_gradients():
    model = lora(torch.bfloat16)
    fuse_lora(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found = loss_and_gradients(model)
    wide = lora()
    expected_loss, expected = loss_and_gradients(wide)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=2e-2)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    flat = torch.cat([found[name].flatten() for name in expected])
    reference = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert torch.nn.functional.cosine_similarity(flat, reference, dim=0) > 0.99


def test_a_disabled_adapter_gives_the_base_model():
    model = lora()
    base = tiny_model()(input_ids=IDS).logits
    fuse_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, base)


@pytest.mark.parametrize("keys", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_layers_that_do_more_are_left_to_peft(keys):
    assert fuse_lora(lora(**keys)) == 0


def test_recomputing_activations_gives_the_same_gradients():
    kept, recomputed = lora(), lora()
    fuse_lora(kept)
    fuse_lora(recomputed)
    recomputed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _, expected = loss_and_gradients(kept)
    _, found = loss_and_gradients(recomputed)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_knows_whether_only_fused_layers_train():
    model = lora()
    assert not trains_fused_only(model)
    fuse_lora(model)
    assert trains_fused_only(model)
    whole = lora(modules_to_save=["embed_tokens"])
    fuse_lora(whole)
    assert not trains_fused_only(whole)
