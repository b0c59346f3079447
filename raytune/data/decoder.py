"""Token ids to text in processes that need nothing else of a tokenizer: without transformers, which takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class Decodes(Protocol):
    """What a transformers tokenizer and a Decoder have in common."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> object:
        """The text of ids."""
        ...


class Decoder:
    """The fast part of a tokenizer, which travels as JSON.

    Args: json: of a tokenizers.Tokenizer.

    Example: Decoder(json).decode([520, 2], skip_special_tokens=True)
    """

    def __init__(self, json: str) -> None:
        self._json = json
        self._tokenizer: Tokenizer | None = None

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of ids, as the transformers tokenizer decodes them."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(self._json)
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def __reduce__(self) -> tuple[object, ...]:
        return (Decoder, (self._json,))


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> Decodes:
    """A Decoder, or the tokenizer itself where it is written in Python or tidies spaces afterwards."""
    from transformers import TokenizersBackend

    if not isinstance(tokenizer, TokenizersBackend) or tokenizer.clean_up_tokenization_spaces:
        return tokenizer
    return Decoder(tokenizer.backend_tokenizer.to_str())
