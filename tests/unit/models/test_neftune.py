"""NEFTune's noise: uniform, as large as the paper says, in training alone."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from raytune.models.neftune import add_noise
from tests.helpers.tiny import tiny_model


@torch.no_grad()
def test_noise_has_the_papers_size() -> None:
    model = tiny_model()
    ids = torch.randint(3, 259, (4, 50), generator=torch.Generator().manual_seed(0))
    clean = model.get_input_embeddings()(ids)
    add_noise(model, alpha=5.0)
    model.train()
    torch.manual_seed(0)
    noise = model.get_input_embeddings()(ids) - clean
    bound = 5.0 / math.sqrt(50 * 64)
    assert float(noise.detach().abs().max()) <= bound * (1 + 1e-6)
    assert float(noise.detach().abs().max()) > 0.99 * bound
    # A uniform distribution on [-b, b] has mean 0 and standard deviation b / sqrt(3).
    assert float(noise.mean()) == pytest.approx(0, abs=0.03 * bound)
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_no_noise_outside_training_and_after_removal() -> None:
    model = tiny_model()
    ids = torch.arange(3, 19)[None]
    clean = model(ids).logits
    handle = add_noise(model, alpha=5.0)
    assert torch.equal(model(ids).logits, clean)
    model.train()
    assert not torch.equal(model(ids).logits, clean)
    handle.remove()
    assert torch.equal(model(ids).logits, clean)


def test_noise_reaches_a_model_with_adapters() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    ids = torch.arange(3, 19)[None]
    clean = model.eval()(ids).logits
    add_noise(model, alpha=5.0)
    assert not torch.equal(model.train()(ids).logits, clean)
