"""The weights that a rollout engine needs, read off a model that trains: Hugging Face names, adapters added in.

model (full, freeze, peft LoRA; whole or sharded) -> pieces, in a fixed order -> whole tensors, one at a time
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raytune.errors import ModelError
from raytune.models.values import is_head

_MERGEABLE = (LoraLinear, LoraEmbedding)
# What peft puts between the names of a wrapped module and its own weight.
_BASE_LAYER = "base_layer"
_ORIGINAL = "original_module"
_TRAINED_COPY = "modules_to_save"


@dataclass(frozen=True, slots=True)
class Piece:
    """One weight of the model and the adapters on it.

    Args: name: as the model without adapters calls it. weight: as it trains, perhaps a shard. layers: adapters, each
    as its layer and its name there. cast: whether it takes the dtype of the transfer; buffers keep their own.

    Example: Piece("model.layers.0.self_attn.q_proj.weight", parameter, ((layer, "default"),), cast=True)
    """

    name: str
    weight: Tensor
    layers: tuple[tuple[Any, str], ...]
    cast: bool

    def whole(self, *, keep: bool) -> Tensor | None:
        """The gathered weight with its adapters added in float32; neither the model nor its dtype is touched.

        Collective for shards: every rank calls it. keep: False takes part in the gathering and returns None.
        """
        base = _gather(self.weight)
        pairs = [(_gather(a), _gather(b), layer, name) for a, b, layer, name in map(_factors, self.layers)]
        if not keep:
            return None
        if not pairs:
            return base
        total = base.to(torch.float32)
        for a, b, layer, name in pairs:
            # Embeddings and GPT-2's Conv1D hold their weight the other way round.
            turned = isinstance(layer, LoraEmbedding) or layer.fan_in_fan_out
            left, right = (a.t(), b.t()) if turned else (b, a)
            total = torch.addmm(total, left.to(total.dtype), right.to(total.dtype), alpha=layer.scaling[name])
        return total


def pieces(model: nn.Module) -> list[Piece]:
    """All weights of the model in its own order, tied ones once, buffers that belong to the weights last.

    Raises: ModelError for adapters that cannot be added into the base weights.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = _adapters(base)
    found: list[Piece] = []
    for full, param in base.named_parameters():
        name = _plain_name(full, base)
        if name is not None:
            found.append(Piece(name, param.detach(), layers.pop(name, ()), cast=param.is_floating_point()))
    kept = base.state_dict().keys()
    buffers = ((full, buffer) for full, buffer in base.named_buffers() if full in kept)
    found += [Piece(full.replace(f"{_BASE_LAYER}.", ""), buffer, (), cast=False) for full, buffer in buffers]
    _check(base, found, layers)
    return found


def _gather(value: Tensor) -> Tensor:
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _factors(adapter: tuple[Any, str]) -> tuple[Tensor, Tensor, Any, str]:
    """A [R, I] and B [O, R] of one adapter, with its layer and name."""
    layer, name = adapter
    if isinstance(layer, LoraEmbedding):
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name], layer, name
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer, name


def _adapters(base: nn.Module) -> dict[str, tuple[tuple[Any, str], ...]]:
    """The active adapters by the name of the weight that they change."""
    found: dict[str, tuple[tuple[Any, str], ...]] = {}
    for path, layer in base.named_modules():
        if not isinstance(layer, BaseTunerLayer) or layer.merged:
            continue
        if not isinstance(layer, _MERGEABLE) or layer.lora_variant or any(layer.lora_bias.values()):
            raise ModelError(
                f"the adapter on {path} ({type(layer).__name__}) cannot be added into its base weight",
                fix="Only plain LoRA on linear layers and embeddings can be merged for rollouts.",
            )
        weight: Any = layer.get_base_layer().weight
        if not weight.is_floating_point():
            raise ModelError(
                f"{path} is quantized: its adapter cannot be added into it",
                fix="Send the adapter alone, or load the model without quantization_bit.",
            )
        found[f"{path}.weight"] = tuple((layer, name) for name in layer.active_adapters if name in layer.scaling)
    return found


def _plain_name(full: str, base: nn.Module) -> str | None:
    """The name in a model without adapters; None for the adapters' own weights, a critic's head and spare copies."""
    parts = full.split(".")
    if is_head(full) or _ORIGINAL in parts or any(part.startswith("lora_") for part in parts):
        return None
    if _TRAINED_COPY in parts:
        place = parts.index(_TRAINED_COPY)
        wrapper: Any = base.get_submodule(".".join(parts[:place]))
        if parts[place + 1] not in wrapper.active_adapters:
            return None
        del parts[place : place + 2]
    return ".".join(part for part in parts if part != _BASE_LAYER)


def _check(base: Any, found: list[Piece], left: dict[str, Any]) -> None:
    """Raise ModelError for adapters on weights that are not published, and for ties that training has torn."""
    ties: dict[str, str] = base.all_tied_weights_keys if base.config.get_text_config().tie_word_embeddings else {}
    apart = [piece.name for piece in found if piece.name in ties]
    adapted = [piece.name for piece in found if piece.layers and piece.name in ties.values()]
    torn = [*apart, *adapted, *left]
    if torn:
        raise ModelError(
            f"{torn[0]} is tied to another weight, but trains apart from it",
            fix="Leave it out of lora_target and additional_target: rollout engines keep the tie.",
        )
