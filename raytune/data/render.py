"""A Sample becomes turns of text: what the model is given, and what it must answer."""

import re
from collections.abc import Sequence

from raytune.data.template import CONTENT, Element, Slot, Template
from raytune.data.tools import parse_calls, render_calls, render_tools
from raytune.types import Message, Sample

Elements = list[Element]
Turn = tuple[Elements, Elements]
"""(source, target): what is given and what is answered."""


ANSWERING = ("assistant", "function")


def render_turns(sample: Sample, template: Template, *, mask_history: bool = False) -> list[Turn]:
    """Render a conversation with a named template, every answer a target.

    A thinking template puts an empty thought where an answer has none: before the answer (trained) if enable_thinking
    is true, else at the end of the prompt (not trained).
    """
    messages = list(sample.messages)
    only_last = mask_history and not template.preserve_thinking
    if template.thought_words:
        last = len(messages) - 1
        for place in range(1, len(messages), 2):
            if template.enable_thinking is False or (only_last and place != last):
                messages[place] = without_thought(messages[place], template.thought_words)
    rendered = render_messages(messages, sample.system, sample.tools, template)
    turns = list(zip(rendered[::2], rendered[1::2], strict=True))
    if template.thought_words:
        for number, (source, target) in enumerate(turns):
            if only_last and number != len(turns) - 1:
                continue
            if not _has_thought(messages[2 * number + 1], template.thought_words):
                empty = "".join(template.thought_words)
                if template.enable_thinking:
                    target.insert(0, empty)
                else:
                    source.append(empty)
    return turns


def render_prompt(
    messages: Sequence[Message], system: str, tools: str, template: Template, *, answer: Message | None = None
) -> Elements:
    """Render a conversation that waits for its next answer, with a named template.

    Args: answer: the one that the row has. LLaMA-Factory looks into it under enable_thinking: null: a prompt whose
    given answer thinks is not closed with an empty thought.
    """
    listed = list(messages)
    words = template.thought_words
    if words and not template.preserve_thinking:
        listed = [without_thought(turn, words) if turn.role in ANSWERING else turn for turn in listed]
    elements = [element for part in render_messages(listed, system, tools, template) for element in part]
    if words and not template.enable_thinking:
        looks = template.compat and template.enable_thinking is None and answer is not None
        if not (looks and _has_thought(answer, words)):
            elements.append("".join(words))
    return elements


def render_messages(messages: Sequence[Message], system: str, tools: str, template: Template) -> list[Elements]:
    """Render each message by its slot; prefix, system prompt and tools stand before the first."""
    rendered: list[Elements] = []
    for place, message in enumerate(messages):
        match message.role:
            case "user":
                part = _fill(template.user, message.content, str(place // 2) if template.compat else None)
            case "assistant":
                part = _fill(template.assistant, message.content)
            case "observation":
                part = _fill(template.observation, message.content)
            case "function":
                part = _fill(template.function, _calls_text(message.content, template))
        rendered.append(part)
    system = system or template.default_system
    tool_text = render_tools(tools, template.tool_format, compat=template.compat) if tools else ""
    opening = list(template.prefix)
    if system or tool_text:
        # The blank lines that part tools from a system prompt have nothing to part where there is none.
        bare = tool_text if template.compat else tool_text.lstrip("\n")
        opening += _fill(template.system, system + tool_text if system else bare)
    if rendered:
        rendered[0] = opening + rendered[0]
    return rendered


def _fill(slot: Slot, content: str, number: str | None = None) -> Elements:
    filled: Elements = []
    for element in slot:
        if isinstance(element, str):
            element = element.replace(CONTENT, content, 1)
            if number is not None:
                element = element.replace("{{idx}}", number, 1)
            if not element:
                continue
        filled.append(element)
    return filled


def _calls_text(content: str, template: Template) -> str:
    before, calls = parse_calls(content)
    return before + render_calls(calls, template.tool_format)


def _has_thought(message: Message, words: tuple[str, str]) -> bool:
    return words[0].strip() in message.content or words[1].strip() in message.content


def without_thought(message: Message, words: tuple[str, str]) -> Message:
    pattern = re.escape(words[0]) + "(.*?)" + re.escape(words[1])
    return Message(message.role, re.sub(pattern, "", message.content, flags=re.DOTALL).lstrip("\n"))
