"""Tool calls as text: how a model family is told of its functions, and how it writes a call.

The texts are each family's own protocol: `qwen` from the chat template of Qwen2.5 and Qwen3, `llama3` from that of
Llama 3.1. `default` is for models that know no protocol: one "Action" and one "Action Input" line a call.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune.errors import DataError

TOOL_FORMATS = ("default", "qwen", "llama3")

_THOUGHT = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_CALL_TAGS = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)

_QWEN_PROMPT = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

_LLAMA3_PROMPT = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call. "
    'Respond in the format {{"name": function name, "parameters": dictionary of argument name and its value}}. '
    "Do not use variables.\n\n{tools}"
)

_DEFAULT_PROMPT = """

Functions you may call, one JSON schema a line:
{tools}

To call one, answer with these two lines and nothing else:
Action: <name of the function>
Action Input: <its arguments as one JSON object>"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function. Example: Call("get_weather", {"city": "Oslo"})"""

    name: str
    arguments: Any


def parse_calls(content: str) -> tuple[str, tuple[Call, ...]]:
    """Read the content of a function turn: a JSON object or list, perhaps after a thought or inside <tool_call> tags.

    Returns: (the text before the calls, the calls).
    Raises: ValueError with the reason.
    """
    tagged = _CALL_TAGS.findall(content)
    if tagged:
        before, bodies = _CALL_TAGS.sub("", content).rstrip("\n"), tagged
    else:
        thought = _THOUGHT.match(content)
        before = thought.group(0) if thought else ""
        bodies = [content[len(before) :]]
    calls: list[Call] = []
    for body in bodies:
        try:
            parsed = json.loads(body)
        except json.JSONDecodeError as error:
            raise ValueError(f"a function call must be JSON: {error}") from None
        calls += [_call(item) for item in (parsed if isinstance(parsed, list) else [parsed])]
    return before, tuple(calls)


def _call(item: object) -> Call:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or "arguments" not in item:
        raise ValueError("a function call needs 'name' and 'arguments'")
    return Call(item["name"], item["arguments"])


def parse_tools(tools: str) -> list[dict[str, Any]]:
    """Return the functions as [{"type": "function", "function": {...}}], whichever way they were given."""
    parsed = json.loads(tools)
    listed = parsed if isinstance(parsed, list) else [parsed]
    return [tool if tool.get("type") == "function" else {"type": "function", "function": tool} for tool in listed]


def render_tools(tools: str, tool_format: str, *, compat: bool) -> str:
    """The text that follows the system prompt and tells the model of its functions."""
    listed = parse_tools(tools)
    match tool_format:
        case "qwen":
            return _QWEN_PROMPT.format(tools="".join("\n" + _dumps(tool) for tool in listed))
        case _ if compat:
            raise DataError(
                f"rows with tools in tool_format '{tool_format}' are not built yet under compat: llamafactory",
                fix="Leave compat out, or set tool_format: qwen.",
            )
        case "llama3":
            indented = (json.dumps(tool, indent=4, ensure_ascii=False) for tool in listed)
            return _LLAMA3_PROMPT.format(tools="".join(tool + "\n\n" for tool in indented))
        case _:
            return _DEFAULT_PROMPT.format(tools="\n".join(_dumps(tool["function"]) for tool in listed))


def render_calls(calls: Sequence[Call], tool_format: str) -> str:
    """The text of an assistant turn that calls functions."""
    match tool_format:
        case "qwen":
            bodies = (_dumps({"name": call.name, "arguments": call.arguments}) for call in calls)
            return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
        case "llama3":
            objects = [{"name": call.name, "parameters": call.arguments} for call in calls]
            return _dumps(objects if len(objects) > 1 else objects[0])
        case _:
            return "\n".join(f"Action: {call.name}\nAction Input: {_dumps(call.arguments)}" for call in calls)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
