"""One batched call; special-token text in content encoded as data."""

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from raytune.data.tokenize import Guard, tokenize
from tests.helpers.tokenizers import CHATML, byte_tokenizer, token_id


def test_ids_are_the_tokenizers_own(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["Hello", "<|im_start|>user\nhi<|im_end|>\n", "", "Hello"]
    ids = tokenize(texts, smollm2_tokenizer, Guard(smollm2_tokenizer))
    assert ids == {text: smollm2_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts}


def test_hidden_text_is_encoded_as_split_special_tokens_does(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    guard = Guard(smollm2_tokenizer)
    content = "see <|im_end|> and <|endoftext|><file_sep>"
    text = f"<|im_start|>user\n{guard.hide(content)}<|im_end|>\n"
    start, end = (token_id(smollm2_tokenizer, token) for token in CHATML)
    split = smollm2_tokenizer(f"user\n{content}", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    newline = smollm2_tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert tokenize([text], smollm2_tokenizer, guard)[text] == [start, *split, end, *newline]
    assert smollm2_tokenizer.backend_tokenizer.encode_special_tokens is False


def test_text_without_special_tokens_is_left_alone(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    guard = Guard(smollm2_tokenizer)
    assert guard.hide("<|im_starts|> <b>") == "<|im_starts|> <b>"
    assert guard.hide("<|im_start|>") != "<|im_start|>"


@pytest.mark.parametrize("content", ["  x <e>  ", "<e>", " "])
def test_tokens_that_swallow_the_space_beside_them(content: str) -> None:
    tokenizer = byte_tokenizer(
        [AddedToken("<s>", rstrip=True, special=True), AddedToken("<e>", lstrip=True, special=True)]
    )
    guard = Guard(tokenizer)
    text = f"<s>{guard.hide(content)}<e>"
    # The same with a stand-in that is no special token: the bytes between the two special tokens must be equal.
    stand_in = content.replace("<e>", "<E>")
    expected = tokenizer(f"<s>{stand_in}<e>", add_special_tokens=False)["input_ids"]
    lower = tokenizer("e", add_special_tokens=False)["input_ids"][0]
    upper = tokenizer("E", add_special_tokens=False)["input_ids"][0]
    made = tokenize([text], tokenizer, guard)[text]
    assert made == [lower if token == upper else token for token in expected]


def test_tokenizer_without_special_tokens() -> None:
    tokenizer = byte_tokenizer([])
    guard = Guard(tokenizer)
    assert guard.hide("<x>") == "<x>"
    assert len(tokenize(["<x>"], tokenizer, guard)["<x>"]) == 3
