"""Rendered text of llama3 and qwen3, thoughts in all three modes, tools."""

import pytest

from raytune.config.template import TemplateConfig
from raytune.data.render import render_messages, render_prompt, render_turns
from raytune.data.template import Element, Template, load_template
from raytune.errors import DataError
from raytune.types import Message, Sample
from tests.helpers.tokenizers import CHATML, byte_tokenizer, llama3_tokenizer

HELLO, GLAD = "\u4f60\u597d", "\u5f88\u9ad8\u5174\u8ba4\u8bc6\u4f60\uff01"
THOUGHT, EMPTY = "<think>\nModel thought here\n</think>\n\n", "<think>\n\n</think>\n\n"


def conversation(first: str = "I am fine!", second: str = GLAD) -> Sample:
    return Sample(
        (
            Message("user", "How are you"),
            Message("assistant", first),
            Message("user", HELLO),
            Message("assistant", second),
        )
    )


def load(name: str, **settings: bool | str | None) -> Template:
    tokenizer = llama3_tokenizer() if name == "llama3" else byte_tokenizer(CHATML, eos="<|im_end|>")
    return load_template(name, tokenizer, TemplateConfig.model_validate(settings))


def text(elements: list[Element]) -> str:
    special = {"bos": "<|begin_of_text|>", "eos": "<|im_end|>"}
    return "".join(element if isinstance(element, str) else special[element.kind] for element in elements)


def test_llama3_text() -> None:
    *prompt, answer = render_messages(conversation().messages, "", "", load("llama3"))
    assert "".join(text(part) for part in prompt) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow are you<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nI am fine!<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{HELLO}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text(answer) == f"{GLAD}<|eot_id|>"


def turn(content: str, thought: str = "") -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n{thought}"


@pytest.mark.parametrize(
    ("enable", "first", "expected"),
    [
        (True, "I am fine!", [(turn("How are you"), f"{EMPTY}I am fine!"), (turn(HELLO), EMPTY + GLAD)]),
        (False, "I am fine!", [(turn("How are you", EMPTY), "I am fine!"), (turn(HELLO, EMPTY), GLAD)]),
        (None, "I am fine!", [(turn("How are you", EMPTY), "I am fine!"), (turn(HELLO, EMPTY), GLAD)]),
        (True, f"{THOUGHT}I am fine!", [(turn("How are you"), f"{THOUGHT}I am fine!"), (turn(HELLO), EMPTY + GLAD)]),
        (None, f"{THOUGHT}I am fine!", [(turn("How are you"), f"{THOUGHT}I am fine!"), (turn(HELLO, EMPTY), GLAD)]),
        (False, f"{THOUGHT}I am fine!", [(turn("How are you", EMPTY), "I am fine!"), (turn(HELLO, EMPTY), GLAD)]),
    ],
)
def test_qwen3_turns(enable: bool | None, first: str, expected: list[tuple[str, str]]) -> None:
    turns = render_turns(conversation(first), load("qwen3", enable_thinking=enable))
    assert [(text(source), text(target)) for source, target in turns] == [
        (source, f"{target}<|im_end|>\n") for source, target in expected
    ]


def test_mask_history_drops_older_thoughts_unless_they_are_preserved() -> None:
    sample = conversation(f"{THOUGHT}I am fine!")
    dropped = render_turns(sample, load("qwen3"), mask_history=True)
    assert [text(target) for _, target in dropped] == ["I am fine!<|im_end|>\n", f"{EMPTY}{GLAD}<|im_end|>\n"]
    kept = render_turns(sample, load("qwen3", preserve_thinking=True), mask_history=True)
    assert text(kept[0][1]) == f"{THOUGHT}I am fine!<|im_end|>\n"


@pytest.mark.parametrize(("enable", "ending"), [(True, ""), (False, EMPTY), (None, EMPTY)])
def test_qwen3_prompt_shows_no_older_thoughts(enable: bool | None, ending: str) -> None:
    messages = conversation(f"{THOUGHT}I am fine!").messages[:3]
    prompt = text(render_prompt(messages, "", "", load("qwen3", enable_thinking=enable)))
    assert prompt == f"{turn('How are you')}I am fine!<|im_end|>\n{turn(HELLO, ending)}"
    assert THOUGHT in text(render_prompt(messages, "", "", load("qwen3", preserve_thinking=True)))


def test_default_system_of_the_run() -> None:
    assert text(
        render_messages(conversation().messages, "", "", load("chatml", default_system="Be kind."))[0]
    ).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_content_is_filled_in_once() -> None:
    sample = (Message("user", "write {{content}} and {{idx}}"),)
    assert "write {{content}} and {{idx}}" in text(render_messages(sample, "", "", load("chatml"))[0])
    assert "write {{content}} and 0<" in text(render_messages(sample, "", "", load("chatml", compat="llamafactory"))[0])


TOOLS = '[{"name": "tool_name", "parameters": {}}]'
CALLED = (
    Message("user", "q"),
    Message("function", '{"name": "tool_name", "arguments": {"foo": "bar", "size": 10}}'),
    Message("observation", "7"),
    Message("assistant", "a"),
)


def test_qwen3_tools() -> None:
    first, call, result, _ = render_messages(CALLED, "", TOOLS, load("qwen3"))
    assert text(first).startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions")
    assert '<tools>\n{"type": "function", "function": {"name": "tool_name", "parameters": {}}}\n</tools>' in text(first)
    assert text(call) == (
        '<tool_call>\n{"name": "tool_name", "arguments": {"foo": "bar", "size": 10}}\n</tool_call><|im_end|>\n'
    )
    assert text(result) == turn("<tool_response>\n7\n</tool_response>")


def test_llamafactory_parts_tools_from_an_absent_system_prompt() -> None:
    first = render_messages(CALLED, "", TOOLS, load("qwen3", compat="llamafactory"))[0]
    assert text(first).startswith("<|im_start|>system\n\n\n# Tools\n\n")


def test_tool_texts_that_cannot_equal_llamafactory() -> None:
    with pytest.raises(DataError, match="not built yet under compat"):
        render_messages(CALLED, "", TOOLS, load("chatml", compat="llamafactory"))
    assert "Action: <name" in text(render_messages(CALLED, "S", TOOLS, load("chatml"))[0])
