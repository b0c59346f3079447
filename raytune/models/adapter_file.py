"""A LoRA adapter as a folder that peft and vLLM read, a new one for each version; nothing else of the model travels."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raytune.models.adapter_folder import WEIGHTS, seal

# Adapters whose values vLLM does not take beside a base model: peft_config attribute and what it must be.
_MUST_BE = {"modules_to_save": None, "bias": "none", "use_dora": False, "lora_bias": False, "use_qalora": False}


def obstacle(model: nn.Module, *, max_rank: int | None = None) -> str | None:
    """Why this model's adapter cannot be sent alone, so that merged weights have to be; None when it can.

    Args: max_rank: the largest that the rollout engine was built for.
    """
    if not isinstance(model, PeftModel):
        return "there is no adapter: all weights are the model's own"
    config: Any = model.peft_config[model.active_adapter]
    values = vars(config)
    wrong = [f"{key}: {values[key]}" for key, wanted in _MUST_BE.items() if values.get(key, wanted) not in (wanted, [])]
    if wrong:
        return f"rollout engines do not take {', '.join(wrong)}"
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    if max_rank is not None and rank > max_rank:
        return f"rank {rank} is larger than the engine's {max_rank}"
    return None


def gather_adapter(model: PeftModel, *, keep: bool) -> dict[str, Tensor]:
    """The adapter's whole weights on the CPU, under the model's names; {} without `keep`. Collective."""
    gathered: dict[str, Tensor] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            value: Any = param.detach()
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                gathered[name] = whole.cpu()
    return gathered


def write_adapter(model: PeftModel, weights: dict[str, Tensor], folder: Path, *, dtype: torch.dtype | None) -> int:
    """Write adapter_config.json, weights and their digest into `folder`, which appears whole; returns bytes.

    Args: dtype: that weights are cast to; None keeps theirs.
    """
    name = model.active_adapter
    state = get_peft_model_state_dict(model, state_dict=weights, adapter_name=name, save_embedding_layers=False)
    state = {key: value.to(dtype or value.dtype).contiguous() for key, value in state.items()}
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    # Not its parents: once a run is over, its folder is gone for good.
    partial.mkdir()
    save_file(state, partial / WEIGHTS)
    config: Any = copy.copy(model.peft_config[name])
    config.inference_mode = True
    config.save_pretrained(str(partial))
    seal(partial, folder)
    return (folder / WEIGHTS).stat().st_size
