"""Weights on disk, in Hugging Face's formats: adapters as peft writes them, whole models as transformers does."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedTokenizerBase

from raytune.engine.base import Engine
from raytune.engine.checkpoint import write_json
from raytune.engine.disk import writes_to
from raytune.errors import CheckpointError
from raytune.models.values import is_head, save_value_head

_SHARD_SIZE = "5GB"
_SMALL_STATE = "small_state.json"
_OPTIMIZER = "optimizer"


def save_rank(engine: Engine, folder: Path, *, tokenizer: PreTrainedTokenizerBase | None, with_state: bool) -> None:
    """Write weights (rank 0) and optimizer shards (every rank) into `folder`. Collective."""
    with writes_to(folder):
        save_weights(engine, folder, tokenizer=tokenizer)
        if with_state:
            engine.save_state(folder / _OPTIMIZER)
            if not dist.is_initialized() or dist.get_rank() == 0:
                write_json(folder / _SMALL_STATE, engine.small_state())


def load_engine_state(engine: Engine, checkpoint: Path) -> None:
    """Read what `save_rank` wrote with its state, weights aside. Collective."""
    if not (checkpoint / _SMALL_STATE).is_file():
        raise CheckpointError(
            f"checkpoint {checkpoint} holds weights only and cannot be resumed",
            fix="It was written with save_only_model: true. Set overwrite_output_dir: true to start anew.",
        )
    engine.load_state(checkpoint / _OPTIMIZER)
    engine.load_small_state(json.loads((checkpoint / _SMALL_STATE).read_text()))


def save_weights(engine: Engine, folder: Path, *, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Gather the weights and write them on rank 0. Collective: every rank calls it.

    An adapter run writes the adapter alone; other runs write the whole model. A value head and the tokenizer go beside
    them.
    """
    model: Any = engine.model
    adapter = isinstance(model, PeftModel)
    gathered = engine.full_weights(trainable_only=adapter)
    if dist.is_initialized() and dist.get_rank() != 0:
        deque(gathered, maxlen=0)  # take part in the gathering, keep nothing
        return
    weights = dict(gathered)
    head = {name: weights.pop(name) for name in [*weights] if is_head(name)}
    if head:
        save_value_head(head, folder)
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
