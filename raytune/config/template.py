"""How a conversation becomes text."""

from typing import Literal

from raytune.config.base import Group


class TemplateConfig(Group):
    template: str | None = None
    """Name of the chat template; null is the tokenizer's own."""
    tool_format: str | None = None
    """How tools and their calls are written; null is the template's own."""
    default_system: str | None = None
    """System prompt of rows that have none; null is the template's own."""
    enable_thinking: bool | None = True
    """Reasoning models: true trains empty thoughts, false puts them in the prompt, null leaves rows as they are."""
    preserve_thinking: bool = False
    """Keep the thoughts of earlier turns."""
    compat: Literal["llamafactory"] | None = None
    """Equal another program's rows to the token, its bugs included."""
