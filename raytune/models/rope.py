"""Stretching rotary positions past the length that a model was trained on."""

import math
from typing import Any

from raytune.errors import ModelError
from raytune.log import get_logger

log = get_logger(__name__)

_LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def stretch_rope(config: Any, kind: str, cutoff_len: int) -> None:
    """Set the rotary scaling of a transformers config so that `cutoff_len` positions fit.

    The factor is ceil(cutoff_len / max_position_embeddings); nothing happens, with a warning, when they fit already.

    Args: kind: linear, dynamic, yarn or llama3.
    Raises: ModelError for a model without rotary positions, or one that is stretched in another way.
    """
    text = config.get_text_config()
    rope, trained = _rope_of(text)
    if cutoff_len <= trained:
        log.warning(
            "rope_scaling is ignored: cutoff_len %d is within the %d positions of the model", cutoff_len, trained
        )
        return
    factor = float(math.ceil(cutoff_len / trained))
    if rope["rope_type"] not in ("default", kind):
        raise ModelError(
            f"rope_scaling: {kind} cannot be put on a model that is stretched by '{rope['rope_type']}' already",
            fix=f"Leave rope_scaling out and set cutoff_len to at most {trained}.",
        )
    stretched = {**rope, "rope_type": kind, "factor": factor}
    if kind in ("yarn", "llama3"):
        stretched["original_max_position_embeddings"] = trained
    if kind == "llama3":
        stretched |= _LLAMA3_BANDS
    text.rope_parameters = stretched
    if kind != "dynamic":  # dynamic scaling begins where max_position_embeddings ends
        text.max_position_embeddings = int(trained * factor)
    log.info("rope_scaling: %s, factor %g, %d positions", kind, factor, int(trained * factor))


def _rope_of(text: Any) -> tuple[dict[str, Any], int]:
    rope = text.to_dict().get("rope_parameters")
    trained = text.to_dict().get("max_position_embeddings")
    if not isinstance(rope, dict) or "rope_type" not in rope or not trained:
        raise ModelError(
            f"rope_scaling does not work with a {text.model_type} model: it has no single set of rotary positions",
            fix="Leave rope_scaling out.",
        )
    return rope, trained
