"""What several test folders share."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path

SHARED = Path(__file__).parents[1].parent / "shared"


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
