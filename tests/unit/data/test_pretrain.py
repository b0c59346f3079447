"""Pre-training rows in the default mode: no text is lost, begin tokens replace nothing."""

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from raytune.config.data import DataConfig
from raytune.config.template import TemplateConfig
from raytune.data.encode import encode_samples
from raytune.data.template import load_template
from raytune.types import Encoded, Message, Sample
from tests.helpers.tokenizers import LLAMA3, byte_tokenizer, decode, llama3_tokenizer, token_id


def encode(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    cutoff: int,
    packing: bool | None = None,
    name: str = "default",
    compat: str | None = None,
) -> list[Encoded]:
    template = load_template(name, tokenizer, TemplateConfig.model_validate({"compat": compat}))
    template.fix_tokenizer(tokenizer)
    samples = [Sample((Message("user", text),)) for text in texts]
    return encode_samples(samples, "pt", template, tokenizer, DataConfig(cutoff_len=cutoff, packing=packing))


def decoded(rows: list[Encoded], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [decode(tokenizer, row.input_ids) for row in rows]


@pytest.mark.parametrize("packing", [None, True])
def test_blocks_keep_the_remainder(packing: bool | None) -> None:
    tokenizer = byte_tokenizer(["<e>"], eos="<e>")
    rows = encode(["abcde", "fg"], tokenizer, 4, packing)
    assert decoded(rows, tokenizer) == ["abcd", "e<e>fg", "<e>"]
    assert all(row.labels == row.input_ids for row in rows)
    theirs = encode(["abcde", "fg"], tokenizer, 4, None, compat="llamafactory")
    assert decoded(theirs, tokenizer) == ["abcd", "e<e>fg"]


def test_one_row_a_text() -> None:
    tokenizer = byte_tokenizer(["<e>"], eos="<e>")
    assert decoded(encode(["abcde", "fg"], tokenizer, 4, packing=False), tokenizer) == ["abcd", "fg<e>"]


def test_the_end_token_of_a_text_under_llama3() -> None:
    tokenizer = llama3_tokenizer()
    for compat in (None, "llamafactory"):
        rows = encode(["ab"], tokenizer, 3, name="llama3", compat=compat)
        assert decoded(rows, tokenizer) == ["ab<|end_of_text|>"]


def test_begin_tokens_stand_before_texts_and_replace_nothing() -> None:
    tokenizer = byte_tokenizer(LLAMA3, bos="<|begin_of_text|>", eos="<|end_of_text|>")
    begin = token_id(tokenizer, "<|begin_of_text|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    rows = encode(["abc", "de"], tokenizer, 100)
    assert decoded(rows, tokenizer) == ["<|begin_of_text|>abc<|end_of_text|><|begin_of_text|>de<|end_of_text|>"]


def test_end_tokens_are_trained_unless_compat_takes_them_for_padding() -> None:
    tokenizer = byte_tokenizer(["<e>"], eos="<e>")
    end = tokenizer.eos_token_id
    assert encode(["ab"], tokenizer, 3)[0].labels[-1] == end
    assert encode(["ab"], tokenizer, 3, compat="llamafactory")[0].labels[-1] == -100


def test_special_token_text_in_a_text_is_data() -> None:
    tokenizer = byte_tokenizer(["<e>"], eos="<e>")
    (row,) = encode(["a<e>b"], tokenizer, 100)
    assert row.input_ids.count(tokenizer.eos_token_id) == 1
    assert decode(tokenizer, row.input_ids) == "a<e>b<e>"
