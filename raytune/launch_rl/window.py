"""How many tokens the rollout engines take, prompt and answer together."""

import json
from functools import cache
from pathlib import Path

from raytune.config.run import RunConfig
from raytune.errors import ConfigError
from raytune.models.embedded import resolve_model_path

# What model configurations call their number of positions.
_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


def model_folder(cfg: RunConfig) -> str:
    """The folder of the policy's base model."""
    return resolve_model_path(
        cfg.model.model_name_or_path,
        revision=cfg.model.model_revision,
        cache_dir=cfg.model.cache_dir,
        token=cfg.model.hf_hub_token,
    )


def window_of(cfg: RunConfig) -> int:
    """The longest prompt with the longest answer, as far as vllm_maxlen and the model's positions allow it.

    Raises: ConfigError where that leaves no token for a prompt.
    """
    wanted = cfg.data.cutoff_len + cfg.sampling.max_new_tokens
    window = min(wanted, cfg.rollout.vllm_maxlen, positions(model_folder(cfg)) or wanted)
    if window < 2:
        raise ConfigError(f"engines of {window} tokens hold no prompt with an answer", fix="Raise vllm_maxlen.")
    return window


def positions(folder: str) -> int | None:
    """Tokens that the model in `folder` was made for, None where its configuration does not say."""
    return number_in_config(folder, _NAMES)


@cache
def number_in_config(folder: str, names: tuple[str, ...]) -> int | None:
    """A number of the model in `folder`, under whichever of `names` its configuration has it, else None."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    parts = (config, config.get("text_config") or {})
    return next((int(part[name]) for part in parts for name in names if part.get(name)), None)
