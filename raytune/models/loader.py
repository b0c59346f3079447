"""From the model's keys to a transformers model, ready for adapters and an engine."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from raytune.config.model import ModelConfig
from raytune.errors import ModelError
from raytune.log import get_logger
from raytune.models.embedded import first_line, resolve_model_path
from raytune.models.folder import check_config, check_weights
from raytune.models.rope import stretch_rope
from raytune.models.vocab import grow_embeddings, grows_vocabulary

log = get_logger(__name__)

_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, SafetensorError)
_FLASH_ATTENTION: dict[str, tuple[str, Callable[[], bool]]] = {
    "fa2": ("flash_attention_2", is_flash_attn_2_available),
    "fa3": ("flash_attention_3", is_flash_attn_3_available),
}


def load_model(cfg: ModelConfig, *, dtype: torch.dtype | None, cutoff_len: int, meta: bool = False) -> PreTrainedModel:
    """Load a causal language model for training: no key-value cache, in eval mode, on the CPU.

    Args: dtype: of the weights, None for the model's own. cutoff_len: positions that rope_scaling has to reach.
        meta: build it without weights, for counting.
    `train_from_scratch` draws the weights from torch's random state: seed it before.
    Raises: ModelError for a folder that holds no such model, missing flash attention, or damaged weights.
    """
    path = resolve_model_path(
        cfg.model_name_or_path,
        revision=cfg.model_revision,
        cache_dir=cfg.cache_dir,
        token=cfg.hf_hub_token,
        weights=not (meta or cfg.train_from_scratch),
    )
    config = _read_config(path, cfg)
    if cfg.rope_scaling is not None:
        stretch_rope(config, cfg.rope_scaling, cutoff_len)
    model = _build(path, config, cfg, dtype=dtype, meta=meta)
    if grows_vocabulary(cfg):
        grow_embeddings(model, cfg)
    model.config.use_cache = False
    _mend_generation_config(model)
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters and all of them; a tied weight counts once."""
    sizes = [(param.numel(), param.requires_grad) for param in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def upcast_norms(model: nn.Module) -> list[nn.Module]:
    """Put the weights of normalisation layers into float32; what they give keeps the dtype of what they take.

    Returns: these layers.
    """
    norms = []
    for name, module in model.named_modules():
        weights = [param for param in module.parameters(recurse=False) if param.ndim == 1]
        if not weights or "norm" not in name:
            continue
        for param in weights:
            param.data = param.data.to(torch.float32)
        module.register_forward_hook(lambda _norm, inputs, output: output.to(inputs[0].dtype))
        norms.append(module)
    return norms


def upcast_head_output(model: Any) -> None:
    """Turn the logits into float32 as they leave the head."""
    model.get_output_embeddings().register_forward_hook(lambda _head, _inputs, logits: logits.to(torch.float32))


def _read_config(path: str, cfg: ModelConfig) -> Any:
    check_config(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
    except _LOAD_ERRORS as error:
        raise ModelError(f"cannot read {path}/config.json: {first_line(error)}") from error


def _build(path: str, config: Any, cfg: ModelConfig, *, dtype: torch.dtype | None, meta: bool) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": dtype or config.dtype, "trust_remote_code": cfg.trust_remote_code}
    # Nothing is computed on the meta device, so a plan needs no attention kernels on this machine.
    attention = None if meta else _attention(cfg.flash_attn)
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        if meta:
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, **options)
        if cfg.train_from_scratch:
            return AutoModelForCausalLM.from_config(config, **options).eval()
        check_weights(path)
        model, report = AutoModelForCausalLM.from_pretrained(path, config=config, output_loading_info=True, **options)
    except _LOAD_ERRORS as error:
        raise ModelError(f"cannot load the model in '{path}': {first_line(error)}") from error
    _check_complete(path, report)
    return model


def _attention(choice: str) -> str | None:
    if choice not in _FLASH_ATTENTION:
        return {"disabled": "eager", "sdpa": "sdpa", "auto": None}[choice]
    name, available = _FLASH_ATTENTION[choice]
    if not available():
        raise ModelError(
            f"flash_attn: {choice} needs a CUDA GPU and the flash-attn package, and one of them is missing",
            fix="Install it with: pip install --no-build-isolation flash-attn, or set flash_attn: auto.",
        )
    return name


def _mend_generation_config(model: Any) -> None:
    # Some hub models set a temperature without sampling, and transformers refuses to save such a model.
    generation = model.generation_config
    if generation is not None and any(value not in (None, 1.0) for value in (generation.temperature, generation.top_p)):
        generation.do_sample = True


def _check_complete(path: str, report: dict[str, Any]) -> None:
    # transformers fills what is missing with random numbers, which nobody wants to find out after training.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights in '{path}' lack {len(missing)} of the model's tensors, {missing[0]} among them",
            fix="Use weights that belong to the config.json beside them.",
        )
