"""Named templates: loading, fit to the tokenizer, settings."""

import pytest
from transformers import PreTrainedTokenizerBase

from raytune.config.template import TemplateConfig
from raytune.data.template import Special, load_template, read_template, template_names
from raytune.errors import DataError
from raytune.types import Message
from tests.helpers.tokenizers import CHATML, byte_tokenizer, llama3_tokenizer


def test_the_first_templates_are_there() -> None:
    wanted = "alpaca bailing chatml default empty llama3 qwen qwen3 qwen3_nothink smollm2 vicuna"
    assert set(wanted.split()) <= set(template_names())


def test_extends_takes_over_what_the_file_does_not_say() -> None:
    qwen3 = read_template("qwen3")
    assert qwen3.user == read_template("chatml").user
    assert qwen3.tool_format == "qwen"
    assert qwen3.thought_words == ("<think>\n", "\n</think>\n\n")
    assert read_template("qwen3_nothink").thought_words is None


def test_unknown_name_tells_the_near_ones(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"unknown template 'chatmll'.*Did you mean chatml"):
        load_template("chatmll", smollm2_tokenizer, TemplateConfig())


@pytest.mark.parametrize("compat", [None, "llamafactory"])
def test_template_that_does_not_fit(smollm2_tokenizer: PreTrainedTokenizerBase, compat: str | None) -> None:
    cfg = TemplateConfig.model_validate({"compat": compat})
    with pytest.raises(
        DataError, match=r"'llama3' does not fit .*: <\|start_header_id\|>, <\|end_header_id\|>, <\|eot"
    ):
        load_template("llama3", smollm2_tokenizer, cfg)
    assert load_template("llama3", llama3_tokenizer(), cfg).name == "llama3"


def test_tokenizer_without_chat_template() -> None:
    with pytest.raises(DataError, match=r"has no chat template.*template: default"):
        load_template(None, llama3_tokenizer(), TemplateConfig())


def test_auto_is_the_tokenizers_own(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    for name in (None, "auto"):
        assert load_template(name, smollm2_tokenizer, TemplateConfig()).own


def test_unknown_tool_format(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="tool_format 'glm4' is not built yet"):
        load_template("chatml", smollm2_tokenizer, TemplateConfig(tool_format="glm4"))


def test_tool_format_keeps_the_answers_ending_unless_compat(smollm2_tokenizer: PreTrainedTokenizerBase) -> None:
    ours = load_template("chatml", smollm2_tokenizer, TemplateConfig(tool_format="qwen"))
    theirs = load_template("chatml", smollm2_tokenizer, TemplateConfig(tool_format="qwen", compat="llamafactory"))
    assert ours.function == ("{{content}}<|im_end|>\n",)
    assert theirs.function == ("{{content}}", Special("eos"))


def test_fix_tokenizer_sets_end_and_pad_token() -> None:
    tokenizer = llama3_tokenizer()
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end_of_text|>", None)
    template = load_template("llama3", tokenizer, TemplateConfig())
    template.fix_tokenizer(tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|eot_id|>", "<|eot_id|>")
    assert tokenizer.convert_ids_to_tokens(template.stop_token_ids(tokenizer)) == ["<|eot_id|>", "<|eom_id|>"]


def test_fix_tokenizer_without_an_end_token() -> None:
    tokenizer = byte_tokenizer(CHATML)
    with pytest.raises(DataError, match="no end-of-sequence token"):
        load_template("default", tokenizer, TemplateConfig()).fix_tokenizer(tokenizer)


@pytest.mark.parametrize("enable_thinking", [True, False, None])
@pytest.mark.parametrize("name", ["smollm2", "qwen3", "auto"])
def test_prompt_ids(smollm2_tokenizer: PreTrainedTokenizerBase, name: str, enable_thinking: bool | None) -> None:
    template = load_template(name, smollm2_tokenizer, TemplateConfig(enable_thinking=enable_thinking))
    template.fix_tokenizer(smollm2_tokenizer)
    messages = [Message("user", "hi"), Message("assistant", "<think>\nx\n</think>\n\nyo"), Message("user", "you?")]
    kept = "yo" if name == "qwen3" else "<think>\nx\n</think>\n\nyo"
    if name == "auto" and enable_thinking is False:
        kept = "yo"
    ending = "<think>\n\n</think>\n\n" if name == "qwen3" and not enable_thinking else ""
    assert smollm2_tokenizer.decode(template.prompt_ids(messages, "Sys", "", smollm2_tokenizer)) == (
        "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        f"<|im_start|>assistant\n{kept}<|im_end|>\n<|im_start|>user\nyou?<|im_end|>\n<|im_start|>assistant\n{ending}"
    )
