"""A LoRA adapter as a folder that peft and vLLM read, a new one for each version; nothing else of the model travels."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raytune.errors import RolloutError

WEIGHTS = "adapter_model.safetensors"
_DIGEST = "digest.json"
# Adapters whose values vLLM does not take beside a base model: peft_config attribute and what it must be.
_MUST_BE = {"modules_to_save": None, "bias": "none", "use_dora": False, "lora_bias": False, "use_qalora": False}
_AGAIN = "The replica stays out of service until it has been given the newest adapter."


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
    partial.mkdir(parents=True)
    save_file(state, partial / WEIGHTS)
    config: Any = copy.copy(model.peft_config[name])
    config.inference_mode = True
    config.save_pretrained(str(partial))
    (partial / _DIGEST).write_text(json.dumps(_digest(partial)))
    partial.rename(folder)
    return (folder / WEIGHTS).stat().st_size


def read_files(folder: Path) -> dict[str, bytes]:
    """All files of an adapter, to travel to another node."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """What `read_files` gave, into `folder`, which appears whole and is verified."""
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    verify_adapter(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def verify_adapter(folder: Path) -> None:
    """Raise RolloutError for an adapter that is missing or damaged."""
    try:
        expected = json.loads((folder / _DIGEST).read_text())
        found = _digest(folder)
    except (OSError, ValueError) as error:
        raise RolloutError(f"the adapter in {folder} cannot be read: {error}", fix=_AGAIN) from None
    if found != expected:
        raise RolloutError(f"the adapter in {folder} is damaged: its digest is wrong", fix=_AGAIN)


def _digest(folder: Path) -> str:
    total = xxhash.xxh3_64()
    for path in sorted(folder.iterdir()):
        if path.name != _DIGEST:
            total.update(path.name.encode())
            total.update(path.read_bytes())
    return total.hexdigest()
