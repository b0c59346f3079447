"""Which weights train: LoRA adapters, a few layers, or all of them."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raytune.config.adapter import AdapterConfig
from raytune.errors import ModelError
from raytune.log import get_logger
from raytune.models.embedded import first_line
from raytune.models.folder import adapter_path, find_adapters
from raytune.models.freeze import freeze_but_layers

log = get_logger(__name__)


def attach(
    model: Any,
    cfg: AdapterConfig,
    *,
    trainable_dtype: torch.dtype,
    is_trainable: bool = True,
    train_embeddings: bool = False,
) -> Any:
    """Put adapters on a transformers model, or mark which of its own weights train.

    Args: trainable_dtype: of the weights that train; frozen ones keep theirs. is_trainable: False loads the adapters
        of adapter_name_or_path for use alone. train_embeddings: the vocabulary has grown, so a new adapter trains
        embeddings and head whole.
    Returns: a PeftModel for lora (the model itself when there is nothing to load), else the model.
    Raises: ModelError for modules that the model does not have and adapters that do not fit.
    """
    match cfg.finetuning_type:
        case "lora":
            model = _attach_lora(model, cfg, is_trainable=is_trainable, train_embeddings=train_embeddings)
        case "freeze" if is_trainable:
            freeze_but_layers(model, cfg)
        case _:
            model.requires_grad_(is_trainable)
    for param in model.parameters():
        if param.requires_grad and param.is_floating_point():
            param.data = param.data.to(trainable_dtype)
    return model


def newest_adapter(cfg: AdapterConfig) -> Path | None:
    """The folder of the last adapter that a run starts from, if any. Raises ModelError when it holds none."""
    names = cfg.adapter_name_or_path
    return adapter_path(names[-1], cfg.adapter_folder) if names else None


def merge(model: Any) -> Any:
    """Fold the active adapter of a PeftModel into its base and return the base; other models come back as they are.

    Each weight is added up in float32 and rounded once to its own dtype, one layer at a time to spare memory.
    """
    if not isinstance(model, PeftModel):
        return model
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            weight: Tensor = base.weight
            dtype, weight.data = weight.dtype, weight.data.to(torch.float32)
            layer.merge()
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return model.merge_and_unload()


def _attach_lora(model: Any, cfg: AdapterConfig, *, is_trainable: bool, train_embeddings: bool) -> Any:
    merged, resumed = find_adapters(cfg, is_trainable=is_trainable)
    for path in merged:
        model = merge(_load_adapter(model, path, is_trainable=False))
        log.info("merged adapter %s", path)
    if resumed is not None:
        return _load_adapter(model, resumed, is_trainable=is_trainable)
    if not is_trainable:
        return model
    return get_peft_model(model, _lora_config(model, cfg, train_embeddings=train_embeddings))


def _load_adapter(model: Any, path: Path, *, is_trainable: bool) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, str(path), is_trainable=is_trainable)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter in '{path}' cannot be put on the model: {first_line(error)}",
            fix="Check that model_name_or_path is the model it was trained on, and that its files are whole.",
        ) from error


def _lora_config(model: Any, cfg: AdapterConfig, *, train_embeddings: bool) -> LoraConfig:
    whole = list(cfg.additional_target)
    if train_embeddings and not whole:
        whole = _embedding_names(model)
        log.info("the vocabulary may have grown: training %s whole", " and ".join(whole))
    _check_names(model, whole, "additional_target", [name for name, _ in model.named_modules() if name])
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha or 2 * cfg.lora_rank,
        lora_dropout=cfg.lora_dropout,
        target_modules=_targets(model, cfg.lora_target),
        modules_to_save=whole or None,
        use_rslora=cfg.use_rslora,
        # A whole copy of tied embeddings has to stay tied to the head.
        ensure_weight_tying=tied and any(name in whole for name in _embedding_names(model)),
    )


def _targets(model: Any, names: Sequence[str]) -> list[str] | str:
    """Leaf names for peft, or one regular expression that it matches against whole module names."""
    head = model.get_output_embeddings()
    linear = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    if list(names) == ["all"]:
        return leaves
    if len(names) == 1 and not re.fullmatch(r"[\w.]+", names[0]):
        return _pattern(model, names[0], leaves)
    adaptable = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    ]
    _check_names(model, names, "lora_target", adaptable)
    return list(names)


def _pattern(model: Any, pattern: str, leaves: list[str]) -> str:
    try:
        found = any(re.fullmatch(pattern, name) for name, _ in model.named_modules())
    except re.error as error:
        raise ModelError(f"lora_target '{pattern}' is not a regular expression: {error}") from None
    if not found:
        raise ModelError(
            f"lora_target '{pattern}' matches no module of this model",
            fix=f"It is matched against whole names such as model.layers.0.self_attn.q_proj; names there are: "
            f"{', '.join(leaves)}.",
        )
    return pattern


def _check_names(model: Any, wanted: Sequence[str], key: str, there: Sequence[str]) -> None:
    """Each wanted name has to be a module's whole name, or its end."""
    unknown = [name for name in wanted if not any(full == name or full.endswith(f".{name}") for full in there)]
    if unknown:
        leaves = dict.fromkeys(name.rpartition(".")[2] for name in there)
        raise ModelError(
            f"{key}: this {model.config.model_type} model has no module '{unknown[0]}'",
            fix=f"There are: {', '.join(leaf for leaf in leaves if not leaf.isdigit())}.",
        )


def _embedding_names(model: Any) -> list[str]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name.rpartition(".")[2] for name, module in model.named_modules() if module in modules]
