"""Text to token ids: each distinct string once, all of a block in one call, and a user's text never as control."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import TokenizersBackend

from raytune.data.template import Element
from raytune.types import Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# U+FDD0 and U+FDD1 are noncharacters: Unicode keeps them out of text for ever.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_HIDDEN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class Guard:
    """Keeps special-token text that stands in a user's content from becoming a special token.

    Before templating, `hide` replaces it by a mark that no template and no tokenizer knows. After templating, the
    strings that hold a mark are cut at the template's own special tokens, the marks are turned back, and the pieces
    are encoded with special tokens switched off. Strings without marks, nearly all, are encoded as they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder.items()
        self._tokens = {token.content: (number, token) for number, token in added if token.special and token.content}
        self._words = sorted(self._tokens, key=len, reverse=True)
        self._beginnings = tuple({word[:2] for word in self._words})
        self._pattern = re.compile("|".join(map(re.escape, self._words)) or r"(?!)")
        self._numbers = {word: number for number, word in enumerate(self._words)}

    def hide(self, text: str) -> str:
        """Replace special-token text by marks."""
        # Scanning for two characters is many times cheaper than the alternation, and nearly always ends the matter.
        if not any(beginning in text for beginning in self._beginnings):
            return text
        return self._pattern.sub(lambda found: f"{_OPEN}{self._numbers[found.group()]}{_CLOSE}", text)

    def hide_sample(self, sample: Sample) -> Sample:
        """Replace special-token text in every part of a sample."""
        messages = tuple(Message(message.role, self.hide(message.content)) for message in sample.messages)
        return replace(sample, messages=messages, system=self.hide(sample.system), tools=self.hide(sample.tools))

    def pieces(self, text: str) -> list[int | str]:
        """Cut a templated string at its special tokens: ids, and the text between them with its marks turned back."""
        parts: list[int | str] = []
        position = 0
        swallows = False
        for found in self._pattern.finditer(text):
            number, token = self._tokens[found.group()]
            before = text[position : found.start()]
            before = before.lstrip() if swallows else before
            parts += [before.rstrip() if token.lstrip else before, number]
            position, swallows = found.end(), token.rstrip
        parts.append(text[position:].lstrip() if swallows else text[position:])
        return [part if isinstance(part, int) else self._show(part) for part in parts if part != ""]

    def _show(self, text: str) -> str:
        return _HIDDEN.sub(lambda found: self._words[int(found.group(1))], text)


def tokenize(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, guard: Guard | None) -> dict[str, list[int]]:
    """Encode strings, without the tokenizer's own begin and end tokens.

    Args: texts: repeats are encoded once. guard: None to read special-token text as special tokens everywhere.
    Returns: string -> ids.
    """
    distinct = list(dict.fromkeys(texts))
    if guard is None:
        return dict(zip(distinct, _encode(distinct, tokenizer, tokenizer.split_special_tokens), strict=True))
    plain = [text for text in distinct if _OPEN not in text]
    known = dict(zip(plain, _encode(plain, tokenizer, False), strict=True))
    if len(plain) == len(distinct):
        return known
    cut = {text: guard.pieces(text) for text in distinct if _OPEN in text}
    strings = list(dict.fromkeys(part for parts in cut.values() for part in parts if isinstance(part, str)))
    ids = dict(zip(strings, _encode(strings, tokenizer, True), strict=True))
    for text, parts in cut.items():
        known[text] = [token for part in parts for token in (ids[part] if isinstance(part, str) else [part])]
    return known


def join_elements(elements: Sequence[Element], ids: dict[str, list[int]], special: dict[str, list[int]]) -> list[int]:
    """The ids of a text, given those of its strings (from `tokenize`) and of its special elements."""
    joined: list[int] = []
    for element in elements:
        joined += ids[element] if isinstance(element, str) else special[element.kind]
    return joined


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Kind of a special element -> its id, nothing where the tokenizer has no such token."""
    known = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    return {kind: [] if number is None else [number] for kind, number in known.items()}


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, split_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []
    if not isinstance(tokenizer, TokenizersBackend):
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split_special_tokens)
        return encoded["input_ids"]
    # Straight to the Rust tokenizer: no offsets, no masks, no copies; a third faster than the call above.
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before = backend.encode_special_tokens
    backend.encode_special_tokens = split_special_tokens
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before
