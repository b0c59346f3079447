"""Weights on disk, in Hugging Face's formats: adapters as peft writes them, whole models as transformers does."""

from collections import deque
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from raytune.engine.base import Engine
from raytune.errors import CheckpointError

_SHARD_SIZE = "5GB"


def save_weights(engine: Engine, folder: Path, *, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Gather the weights and write them on rank 0. Collective: every rank calls it.

    An adapter run writes the adapter alone; other runs write the whole model. The tokenizer goes beside them.
    """
    model: Any = engine.model
    adapter = isinstance(model, PeftModel)
    gathered = engine.full_weights(trainable_only=adapter)
    if dist.is_initialized() and dist.get_rank() != 0:
        deque(gathered, maxlen=0)  # take part in the gathering, keep nothing
        return
    weights = dict(gathered)
    if adapter:
        model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    else:
        model.save_pretrained(folder, state_dict=weights, max_shard_size=_SHARD_SIZE)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_adapter_weights(model: PeftModel, checkpoint: Path) -> None:
    """Put the adapter of `checkpoint` into `model`, which has the same adapter with other values."""
    fix = "Resume with the adapter settings (lora_target, lora_rank, additional_target) it was trained with."
    try:
        report = set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
    except RuntimeError as error:  # torch's word for tensors of another size
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"the adapter in {checkpoint} does not fit this run: {reason}", fix=fix) from error
    if report.unexpected_keys:
        raise CheckpointError(
            f"the adapter in {checkpoint} does not fit this run: it has {report.unexpected_keys[0]}", fix=fix
        )
