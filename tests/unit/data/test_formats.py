"""Rows of the three formats, and the rule each broken row names."""

import json
from pathlib import Path
from typing import Any

import pytest

from raytune.data.formats import InvalidRow, to_sample
from raytune.data.registry import DatasetSpec, load_registry
from raytune.types import Message, Sample, Stage

OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}


def spec(**entry: Any) -> DatasetSpec:
    return load_registry({"set": {"file_name": "x.json", **entry}}).get("set")


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def test_alpaca_joins_instruction_and_input() -> None:
    row = {"instruction": "Solve the math problem.", "input": "3 + 4", "output": "The answer is 7."}
    expected = (Message("user", "Solve the math problem.\n3 + 4"), Message("assistant", "The answer is 7."))
    assert to_sample(row, spec()) == Sample(expected)


def test_alpaca_with_history_system_and_absent_input() -> None:
    columns = {"prompt": "instruction", "response": "output", "history": "history", "system": "system"}
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "S"}
    sample = to_sample(row, spec(columns=columns))
    assert [turn.content for turn in sample.messages] == ["a", "b", "c", "d"]
    assert sample.system == "S"
    assert to_sample({"instruction": "c", "output": "d"}, spec()).messages[0].content == "c"


def test_sharegpt_system_message() -> None:
    row = chat(
        ("system", "You are a helpful assistant."),
        ("human", "Solve the math problem.\n3 + 4"),
        ("gpt", "The answer is 7."),
    )
    expected = (Message("user", "Solve the math problem.\n3 + 4"), Message("assistant", "The answer is 7."))
    assert to_sample(row, spec(formatting="sharegpt")) == Sample(expected, "You are a helpful assistant.")


def test_every_row_of_the_shared_files_is_read(shared: Path) -> None:
    registry = load_registry(str(shared / "data"))
    for name, expected in (("identity", 91), ("alpaca_en_demo", 999), ("glaive_toolcall_en_demo", 300)):
        rows = json.loads((shared / "data" / f"{name}.json").read_text(encoding="utf-8"))
        samples = [to_sample(row, registry.get(name)) for row in rows]
        assert len(samples) == expected
        assert all(sample.messages[-1].role in ("assistant", "function") for sample in samples)
    first = (shared / "data/c4_demo.jsonl").read_text(encoding="utf-8").splitlines()[0]
    text = json.loads(first)["text"]
    assert to_sample({"text": text}, registry.get("c4_demo"), "pt") == Sample((Message("user", text),))


def test_openai_merges_tool_results_and_reads_calls() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "a"},
        ]
    }
    sample = to_sample(row, spec(formatting="openai"))
    assert [turn.role for turn in sample.messages] == ["user", "function", "observation", "assistant"]
    assert json.loads(sample.messages[1].content) == [{"name": "f", "arguments": {"x": 1}}] * 2
    assert sample.messages[2].content == "1\n</tool_response>\n<tool_response>\n2"
    assert sample.system == ""


@pytest.mark.parametrize(
    ("system", "tools", "expected"),
    [
        ("", "", "detailed thinking off"),
        ("", "[{}]", ""),
        ("S", "", "S\ndetailed thinking off"),
        ("detailed thinking on", "", "detailed thinking on"),
        ("S", "[{}]", "S\n"),
    ],
)
def test_openai_system_words_under_compat_only(system: str, tools: str, expected: str) -> None:
    layout = spec(formatting="openai", columns={"messages": "messages", "tools": "tools"}, tags=OPENAI_TAGS)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"messages": [*([{"role": "system", "content": system}] if system else []), *turns], "tools": tools}
    assert to_sample(row, layout, compat=True).system == expected
    assert to_sample(row, layout).system == system


ALPACA = {"instruction": "q", "input": "", "output": "a"}


@pytest.mark.parametrize(
    ("entry", "row", "message"),
    [
        ({}, {"instruction": "q", "response": "a"}, r"no column 'output' \(the row has instruction, response\)"),
        ({}, ALPACA | {"output": None}, "'output' is null, not text"),
        ({}, ALPACA | {"output": 7}, "'output' is the number 7, not text"),
        ({}, ALPACA | {"output": ""}, "'output' is empty; every sft row needs an answer"),
        ({}, ALPACA | {"instruction": None}, "'instruction' is null"),
        ({}, ALPACA | {"instruction": ""}, "no text in 'instruction' and 'input'"),
        ({"columns": {"prompt": "instruction"}}, ALPACA, "no 'response' column is named"),
        (
            {"columns": {"prompt": "instruction", "query": "text", "response": "output"}},
            ALPACA,
            "no column 'text'",
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "history": "h"}},
            ALPACA | {"h": [["a", "b"], ["c"]]},
            "'h' pair 2 must be two texts",
        ),
        ({"ranking": True}, ALPACA, "chosen and rejected answers, which stage sft cannot train on"),
        (
            {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "k"}},
            ALPACA | {"k": True},
            "a kto tag, which stage sft cannot train on",
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "images": "images"}},
            ALPACA | {"images": ["a.png"]},
            "images are not built yet",
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "images": "images"}},
            ALPACA | {"instruction": "<image>what?", "images": []},
            "1 <image> but 'images' is empty",
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output", "tools": "tools"}},
            ALPACA | {"tools": "[{"},
            "'tools' is not valid JSON",
        ),
    ],
)
def test_broken_alpaca_row(entry: dict[str, Any], row: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRow, match=message):
        to_sample(row, spec(**entry))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat(("human", "a"), ("human", "b")), "message 2 is of role user; .* it is assistant or function"),
        (chat(("gpt", "a"), ("human", "b")), "message 1 is of role assistant; .* it is user or observation"),
        (chat(("human", "a"), ("gpt", "b"), ("human", "c")), "ends with message 3 of role user, not with an answer"),
        (chat(("human", "a"), ("bot", "b")), "message 2 is of the unknown role 'bot'; .*'human'"),
        (chat(("human", "a"), ("system", "b")), "only the first message may be the system prompt"),
        (chat(("human", "a"), ("gpt", None)), r"message 2 \(gpt\): 'value' is null, not text"),
        (chat(("human", "a"), ("gpt", "")), "message 2 is an empty answer"),
        (chat(("human", "a"), ("function_call", "f(x)")), r"message 2 \(function\): a function call must be JSON"),
        (chat(("human", "a"), ("function_call", '{"name": "f"}')), "needs 'name' and 'arguments'"),
        ({"conversations": []}, "holds no message"),
        ({"conversations": "hi"}, "must be a list of messages, not text"),
        ({"conversations": [{"role": "user", "content": "a"}]}, r"message 1 has no 'from' \(it has role, content\)"),
        ({"messages": []}, r"no column 'conversations' \(the row has messages\)"),
    ],
)
def test_broken_sharegpt_row(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRow, match=message):
        to_sample(row, spec(formatting="sharegpt"))


def test_role_that_the_tags_null() -> None:
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    with pytest.raises(InvalidRow, match="message 1 is of the unknown role 'system'"):
        to_sample(chat(("system", "s"), ("human", "a"), ("gpt", "b")), spec(formatting="sharegpt", tags=tags))


def test_llamafactory_takes_an_empty_answer() -> None:
    assert to_sample(ALPACA | {"output": ""}, spec(), compat=True).messages[1].content == ""


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_other_stages_are_not_built(stage: Stage) -> None:
    with pytest.raises(InvalidRow, match="not built yet"):
        to_sample(ALPACA, spec(), stage)


def test_pretraining_reads_no_conversation() -> None:
    with pytest.raises(InvalidRow, match="stage pt reads plain text"):
        to_sample(chat(("human", "a"), ("gpt", "b")), spec(formatting="sharegpt"), "pt")
