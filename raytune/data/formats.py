"""A row of a user's file, whatever its format, becomes a Sample, or an InvalidRow that names the broken rule."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raytune.data.registry import Columns, DatasetSpec, Tags
from raytune.data.tools import parse_calls
from raytune.types import PAIR_STAGES, PROMPT_STAGES, Message, Role, Sample, Stage

Row = Mapping[str, Any]

PLACEHOLDERS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
TOOL_RESPONSE_BORDER = "\n</tool_response>\n<tool_response>\n"
"""Between the results of several tool calls of one turn, so that the template's own pair of tags closes each."""


RESERVED = ("prompts", "completions", "completion_ids", "token_rows", "texts", "log_metric", "log_extra")
"""Names under which reward functions are given other things than a row's columns."""
_ROLES = {"user": "user", "assistant": "assistant", "function": "assistant", "observation": "tool"}


class InvalidRow(ValueError):
    """A row that breaks its format; the reader of the file adds its name and the row's number.

    Example: InvalidRow("'output' is null; an answer must be text")
    """

    def __init__(self, rule: str) -> None:
        self.rule = rule
        super().__init__(rule)


def to_sample(row: Row, spec: DatasetSpec, stage: Stage = "sft", *, compat: bool = False) -> Sample:
    """Read one row by the layout of its data set.

    Args: compat: LLaMA-Factory's reading, where it differs (docs/compat.md, rows).
    Raises: InvalidRow.
    """
    if spec.ranking or (spec.columns.kto_tag is not None and stage != "kto"):
        kind = "chosen and rejected answers" if spec.ranking else "a kto tag"
        if stage in ("pt", "sft", *PROMPT_STAGES):
            raise InvalidRow(f"data set '{spec.name}' has {kind}, which stage {stage} cannot train on")
    if stage not in ("pt", "sft", *PROMPT_STAGES, *PAIR_STAGES):
        raise InvalidRow(f"rows for stage {stage} are not built yet")
    sample = _pair(row, spec, compat) if stage in PAIR_STAGES else _read(row, spec, stage, compat)
    _check_media(row, spec.columns, sample)
    if stage in PROMPT_STAGES:
        return replace(sample, columns=_reward_columns(row, spec, sample))
    return sample


def _read(row: Row, spec: DatasetSpec, stage: Stage, compat: bool) -> Sample:
    match spec.formatting:
        case "alpaca":
            return _alpaca(row, spec.columns, spec.spelled, stage, compat)
        case "sharegpt":
            return _sharegpt(row, spec.columns, spec.tags, stage, compat)
        case "openai":
            return _openai(row, spec.columns, spec.tags, stage, compat)


def _pair(row: Row, spec: DatasetSpec, compat: bool) -> Sample:
    """A conversation that waits for an answer, and two answers to it."""
    if not spec.ranking:
        raise InvalidRow(f"data set '{spec.name}' has no pairs of answers; its entry needs ranking: true")
    asked = _read(row, spec, PROMPT_STAGES[0], compat)
    if len(asked.messages) % 2 == 0:
        raise InvalidRow("the conversation before the chosen and the rejected answer ends with an answer itself")
    chosen = _answer(row, spec.columns.chosen, "chosen", spec, compat)
    rejected = _answer(row, spec.columns.rejected, "rejected", spec, compat)
    return replace(asked, messages=(*asked.messages, chosen), rejected=rejected)


def _answer(row: Row, column: str | None, part: str, spec: DatasetSpec, compat: bool) -> Message:
    """One of two answers: text in an alpaca row, a message in a conversation."""
    if column is None:
        raise InvalidRow(f"no '{part}' column is named in the data set's entry; every pair needs both answers")
    role: Role = "assistant"
    if spec.formatting == "alpaca":
        text = _text(row, column)
    else:
        given = _column(row, column)
        name, text = _read_message(given, f"'{column}'", spec.tags, spec.formatting == "openai")
        names: dict[str | None, Role] = {spec.tags.function_tag: "function", spec.tags.assistant_tag: "assistant"}
        if name not in names:
            raise InvalidRow(f"'{column}' is of role '{name}'; an answer is of role '{spec.tags.assistant_tag}'")
        role = names[name]
    if not text and not compat:
        raise InvalidRow(f"'{column}' is an empty answer")
    return Message(role, text)


def _alpaca(row: Row, columns: Columns, spelled: frozenset[str], stage: Stage, compat: bool) -> Sample:
    messages: list[Message] = []
    for number, pair in enumerate(_optional(row, columns.history) or [], start=1):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise InvalidRow(f"'{columns.history}' pair {number} must be two texts, [instruction, answer]")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    parts = [_text(row, columns.prompt)] if columns.prompt else []
    # The default 'input' may be absent; a column that the entry names itself may not.
    if columns.query and ("query" in spelled or columns.query in row):
        parts.append(_text(row, columns.query, null=""))
    prompt = "\n".join(part for part in parts if part)
    if not prompt and not compat:
        named = " and ".join(f"'{name}'" for name in (columns.prompt, columns.query) if name)
        raise InvalidRow(f"the prompt is empty: no text in {named or 'any column, for none is named'}")
    if stage == "pt":
        return Sample((Message("user", prompt),))
    if stage in PROMPT_STAGES:
        messages.append(Message("user", prompt))
        return Sample(tuple(messages), _text(row, columns.system, null=""), _tools(row, columns.tools))
    if columns.response is None:
        raise InvalidRow("no 'response' column is named in the data set's entry; every sft row needs an answer")
    answer = _text(row, columns.response)
    if not answer and not compat:
        raise InvalidRow(f"'{columns.response}' is empty; every sft row needs an answer")
    messages += [Message("user", prompt), Message("assistant", answer)]
    return Sample(tuple(messages), _text(row, columns.system, null=""), _tools(row, columns.tools))


def _sharegpt(row: Row, columns: Columns, tags: Tags, stage: Stage, compat: bool) -> Sample:
    messages, system = _split_system(_messages(row, columns, tags), tags)
    turns = [Message(_role(name, tags, place), text) for place, name, text in messages]
    return _conversation(turns, system or _text(row, columns.system, null=""), row, columns, stage, compat)


def _openai(row: Row, columns: Columns, tags: Tags, stage: Stage, compat: bool) -> Sample:
    messages, system = _split_system(_messages(row, columns, tags, calls=True), tags)
    turns: list[Message] = []
    merging = False
    for place, name, text in messages:
        is_result = name == tags.observation_tag
        if is_result and merging:
            turns[-1] = Message("observation", turns[-1].content + TOOL_RESPONSE_BORDER + text)
        else:
            turns.append(Message(_role(name, tags, place), text))
        merging = is_result
    system = system or _text(row, columns.system, null="")
    if compat:
        system = _detailed_thinking(system, bool(_tools(row, columns.tools)))
    return _conversation(turns, system, row, columns, stage, compat)


def _conversation(turns: list[Message], system: str, row: Row, columns: Columns, stage: Stage, compat: bool) -> Sample:
    """Check the order of the roles: asking and answering alternate, an asking one first and an answering one last."""
    if stage == "pt":
        raise InvalidRow('stage pt reads plain text: use formatting alpaca with columns {"prompt": <text column>}')
    if not turns:
        raise InvalidRow(f"'{columns.messages}' holds no message")
    for place, turn in enumerate(turns, start=1):
        asking = place % 2 == 1
        if (turn.role in ("user", "observation")) != asking:
            wanted = "user or observation" if asking else "assistant or function"
            raise InvalidRow(f"message {place} is of role {turn.role}; in an alternating conversation it is {wanted}")
        if turn.role == "function":
            _check_calls(turn.content, place)
        if turn.role == "assistant" and not turn.content and not compat:
            raise InvalidRow(f"message {place} is an empty answer")
    if len(turns) % 2 and stage not in PROMPT_STAGES:
        raise InvalidRow(
            f"the conversation ends with message {len(turns)} of role {turns[-1].role}, not with an answer"
        )
    return Sample(tuple(turns), system, _tools(row, columns.tools))


def _reward_columns(row: Row, spec: DatasetSpec, sample: Sample) -> str:
    """JSON of what rewards are told: the row's columns that no part of the prompt was read from, and the prompt.

    A conversation is given as `messages` (role and content; a last answer apart, as `answer`, unless the row has such a
    column), an alpaca row's question as `prompt`.
    """
    used = spec.columns
    read = {used.history, used.system, used.tools, used.images, used.videos, used.audios}
    read |= {used.prompt, used.query} if spec.formatting == "alpaca" else {used.messages}
    kept = {str(name): value for name, value in row.items() if name not in read}
    for name in (name for name in RESERVED if name in kept):
        raise InvalidRow(f"the column '{name}' has a name that reward functions know for something else; rename it")
    name, value = _prompt_column(spec, sample)
    if name in kept and value != kept[name]:
        raise InvalidRow(f"the column '{name}' has the name under which rewards are given the prompt; rename it")
    kept[name] = value
    if spec.formatting != "alpaca" and len(sample.messages) % 2 == 0:
        kept.setdefault("answer", sample.messages[-1].content)
    try:
        return json.dumps(kept, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRow(f"a column cannot be given to reward functions: {error}") from None


def _prompt_column(spec: DatasetSpec, sample: Sample) -> tuple[str, str | list[dict[str, str]]]:
    if spec.formatting == "alpaca":
        return "prompt", sample.messages[-1].content
    # Asking and answering alternate, so a conversation of an even number of turns ends with an answer.
    asked = sample.messages[: len(sample.messages) - 1 + len(sample.messages) % 2]
    turns = [{"role": _ROLES[turn.role], "content": turn.content} for turn in asked]
    return "messages", [{"role": "system", "content": sample.system}, *turns] if sample.system else turns


def _messages(row: Row, columns: Columns, tags: Tags, calls: bool = False) -> list[tuple[int, str, str]]:
    """Return (place from 1, role name, text) of every message."""
    if columns.messages is None:
        raise InvalidRow("no 'messages' column is named in the data set's entry")
    messages = _column(row, columns.messages)
    if not isinstance(messages, list | tuple):
        raise InvalidRow(f"'{columns.messages}' must be a list of messages, not {_kind(messages)}")
    return [
        (place, *_read_message(one, f"message {place}", tags, calls)) for place, one in enumerate(messages, start=1)
    ]


def _read_message(message: object, where: str, tags: Tags, calls: bool) -> tuple[str, str]:
    """Return (role name, text) of one message. Args: where: what errors call it."""
    if tags.role_tag is None or tags.content_tag is None:
        raise InvalidRow("the data set's 'tags' leave out role_tag or content_tag; naming one tag nulls the others")
    if not isinstance(message, Mapping) or tags.role_tag not in message:
        keys = ", ".join(map(str, message)) if isinstance(message, Mapping) else _kind(message)
        raise InvalidRow(f"{where} has no '{tags.role_tag}' (it has {keys})")
    role, text = message[tags.role_tag], message.get(tags.content_tag)
    made = message.get("tool_calls") if calls else None
    if made and role in (tags.assistant_tag, tags.function_tag):
        if tags.function_tag is None:
            raise InvalidRow(f"{where} calls a tool, but the data set's 'tags' name no function_tag")
        role, text = tags.function_tag, _called(made, where)
    if not isinstance(text, str):
        known = tags.content_tag in message
        reason = f"'{tags.content_tag}' is {_kind(text)}, not text" if known else f"there is no '{tags.content_tag}'"
        raise InvalidRow(f"{where} ({role}): {reason}")
    return role, text


def _called(calls: object, where: str) -> str:
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    if not functions or not all(isinstance(function, Mapping) for function in functions):
        raise InvalidRow(f'{where}: \'tool_calls\' must be a list of {{"type": "function", "function": ...}}')
    return json.dumps(functions, ensure_ascii=False)


def _split_system(messages: list[tuple[int, str, str]], tags: Tags) -> tuple[list[tuple[int, str, str]], str]:
    if messages and tags.system_tag is not None and messages[0][1] == tags.system_tag:
        return messages[1:], messages[0][2]
    return messages, ""


def _role(name: str, tags: Tags, place: int) -> Role:
    roles: dict[str | None, Role] = {
        tags.function_tag: "function",
        tags.observation_tag: "observation",
        tags.assistant_tag: "assistant",
        tags.user_tag: "user",
    }
    roles.pop(None, None)
    if name == tags.system_tag:
        raise InvalidRow(f"message {place} is of role '{name}'; only the first message may be the system prompt")
    if name not in roles:
        known = ", ".join(f"'{role}'" for role in roles)
        raise InvalidRow(f"message {place} is of the unknown role '{name}'; the data set's tags name {known or 'none'}")
    return roles[name]


def _check_calls(content: str, place: int) -> None:
    try:
        parse_calls(content)
    except ValueError as error:
        raise InvalidRow(f"message {place} (function): {error}") from None


def _detailed_thinking(system: str, has_tools: bool) -> str:
    """The words that LLaMA-Factory adds to the system prompt of every `formatting: openai` row."""
    if not system:
        return "" if has_tools else "detailed thinking off"
    if has_tools:
        return system + "\n"
    said = "detailed thinking on" in system or "detailed thinking off" in system
    return system if said else system + "\ndetailed thinking off"


def _check_media(row: Row, columns: Columns, sample: Sample) -> None:
    named = {"images": columns.images, "videos": columns.videos, "audios": columns.audios}
    for kind, column in named.items():
        if column is None:
            continue
        if _optional(row, column):
            raise InvalidRow(f"'{column}' holds media: {kind} are not built yet")
        count = sum(message.content.count(PLACEHOLDERS[kind]) for message in sample.messages)
        if count:
            raise InvalidRow(f"the text has {count} {PLACEHOLDERS[kind]} but '{column}' is empty")


def _tools(row: Row, column: str | None) -> str:
    value = _optional(row, column)
    if not value:
        return ""
    if isinstance(value, list | Mapping):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise InvalidRow(f"'{column}' is {_kind(value)}, not a JSON list of functions")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise InvalidRow(f"'{column}' is not valid JSON: {error}") from None
    if not isinstance(parsed, list | dict):
        raise InvalidRow(f"'{column}' must be a JSON list of functions")
    return value if parsed else ""


def _text(row: Row, column: str | None, null: str | None = None) -> str:
    """The text of a column; `null` is what a null or unnamed column stands for, None if it must be there."""
    if column is None and null is not None:
        return null
    value = _column(row, column)
    if value is None and null is not None:
        return null
    if not isinstance(value, str):
        raise InvalidRow(f"'{column}' is {_kind(value)}, not text")
    return value


def _optional(row: Row, column: str | None) -> Any:
    return None if column is None else _column(row, column)


def _column(row: Row, column: str | None) -> Any:
    if column not in row:
        raise InvalidRow(f"there is no column '{column}' (the row has {', '.join(map(str, row)) or 'none'})")
    return row[column]


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool() | int() | float():
            return f"the number {value}" if not isinstance(value, bool) else f"the boolean {value}"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"
