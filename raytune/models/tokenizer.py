"""The tokenizer of a model, with the tokens that the user adds."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raytune.config.model import ModelConfig
from raytune.errors import ModelError
from raytune.log import get_logger
from raytune.models.embedded import first_line, folder_contents, resolve_model_path

log = get_logger(__name__)

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's vocabulary lies in a folder."""
    return any(name.endswith(_VOCABULARY_FILES) for name in folder_contents(folder))


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the model, padding on the right, with added tokens.

    Raises: ModelError when the folder holds none or it cannot be read.
    """
    path = resolve_model_path(
        cfg.model_name_or_path,
        revision=cfg.model_revision,
        cache_dir=cfg.cache_dir,
        token=cfg.hf_hub_token,
        weights=False,
    )
    contents = folder_contents(path)
    # A tokenizer that brings its own code may bring a vocabulary file of any name.
    if not cfg.trust_remote_code and not any(name.endswith(_VOCABULARY_FILES) for name in contents):
        raise ModelError(
            f"model folder '{path}' has no tokenizer: none of {', '.join(_VOCABULARY_FILES)}",
            where=f"there is: {', '.join(contents) or 'nothing'}",
            fix="Copy the tokenizer files of the base model into it.",
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            path,
            use_fast=cfg.use_fast_tokenizer,
            split_special_tokens=cfg.split_special_tokens,
            padding_side="right",
            trust_remote_code=cfg.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"cannot load the tokenizer in '{path}': {first_line(error)}") from error
    _add_tokens(tokenizer, cfg)
    return tokenizer


def _add_tokens(tokenizer: PreTrainedTokenizerBase, cfg: ModelConfig) -> None:
    added = tokenizer.add_tokens(list(cfg.add_tokens), special_tokens=False) if cfg.add_tokens else 0
    if cfg.add_special_tokens:
        added += tokenizer.add_tokens(list(cfg.add_special_tokens), special_tokens=True)
    if added:
        log.info("added %d tokens to the vocabulary, which now has %d", added, len(tokenizer))
