"""What several test folders share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def unconfigured_log() -> Iterator[None]:
    """Commands send the log to their own stderr; the next test has it as it was."""
    logger = logging.getLogger("raytune")
    handlers, propagates, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagates
    logger.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference facts and test data beside the repository."""
    return SHARED


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded default model's tokenizer; no test changes it (its end and pad token are <|im_end|> already)."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path(EMBEDDED_NAME))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
