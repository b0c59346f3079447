"""The policy before training: what its log-probs are compared with.

A run that trains a new adapter has it inside: the base without it. Others keep a frozen copy, those that go on with an
adapter too: without it the base is not what they began as.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel

from raytune.config.adapter import AdapterConfig
from raytune.config.model import ModelConfig
from raytune.models.adapters import attach
from raytune.models.loader import load_model


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """Within: the base model alone. What trains, trains again afterwards.

    peft marks the weights of a disabled adapter as frozen, and of an enabled one as trainable, whatever they were.
    """
    trains = [(param, param.requires_grad) for param in model.parameters()]
    # Not model.disable_adapter(), which describes the whole model each time, to warn of what is no case here.
    tuner: Any = model.base_model
    tuner.disable_adapter_layers()
    try:
        yield
    finally:
        tuner.enable_adapter_layers()
        for param, wanted in trains:
            param.requires_grad_(wanted)


def frozen_copy(
    cfg: ModelConfig, adapter: AdapterConfig, *, dtype: torch.dtype, cutoff_len: int, attention: str
) -> Any:
    """Load what a run started from once more, for use alone. Args: attention: of the one that trains."""
    model = load_model(cfg, dtype=dtype, cutoff_len=cutoff_len)
    model = attach(model, adapter, trainable_dtype=dtype, is_trainable=False)
    model.requires_grad_(False)
    model.set_attn_implementation(attention)
    return model.eval()
