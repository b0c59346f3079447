"""Calls as text; the expected texts are those of LLaMA-Factory's formatter tests."""

import pytest

from raytune.data.tools import Call, parse_calls, parse_tools, render_calls, render_tools

CALL = Call("tool_name", {"foo": "bar", "size": 10})
ARGUMENTS = '{"foo": "bar", "size": 10}'


@pytest.mark.parametrize(
    ("tool_format", "expected"),
    [
        ("default", f"Action: tool_name\nAction Input: {ARGUMENTS}"),
        ("llama3", f'{{"name": "tool_name", "parameters": {ARGUMENTS}}}'),
        ("qwen", f'<tool_call>\n{{"name": "tool_name", "arguments": {ARGUMENTS}}}\n</tool_call>'),
    ],
)
def test_one_call(tool_format: str, expected: str) -> None:
    assert render_calls([CALL], tool_format) == expected


def test_two_calls() -> None:
    one = f'{{"name": "tool_name", "parameters": {ARGUMENTS}}}'
    assert render_calls([CALL, CALL], "llama3") == f"[{one}, {one}]"
    assert render_calls([CALL, CALL], "qwen").count("</tool_call>\n<tool_call>") == 1


@pytest.mark.parametrize(
    ("content", "before"),
    [
        (f'{{"name": "tool_name", "arguments": {ARGUMENTS}}}', ""),
        (f'[{{"name": "tool_name", "arguments": {ARGUMENTS}}}]', ""),
        (f'<think>\nhm\n</think>\n\n{{"name": "tool_name", "arguments": {ARGUMENTS}}}', "<think>\nhm\n</think>\n\n"),
        (f'<tool_call>\n{{"name": "tool_name", "arguments": {ARGUMENTS}}}\n</tool_call>', ""),
    ],
)
def test_parse_calls(content: str, before: str) -> None:
    assert parse_calls(content) == (before, (CALL,))


@pytest.mark.parametrize("content", ["", "f(x)", "[1]", '{"name": 1, "arguments": {}}', '{"arguments": {}}'])
def test_parse_calls_refuses(content: str) -> None:
    with pytest.raises(ValueError, match="a function call"):
        parse_calls(content)


def test_tools_bare_or_wrapped() -> None:
    wrapped = [{"type": "function", "function": {"name": "f"}}]
    assert parse_tools('[{"name": "f"}]') == parse_tools('[{"type": "function", "function": {"name": "f"}}]') == wrapped
    assert parse_tools('{"name": "f"}') == wrapped


def test_llama3_tools_carry_no_date() -> None:
    text = render_tools('[{"name": "f"}]', "llama3", compat=False)
    assert "Date" not in text
    assert text.endswith('{\n    "type": "function",\n    "function": {\n        "name": "f"\n    }\n}\n\n')
