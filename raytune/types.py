"""The values that pass between rooms. Flat, frozen, and documented with who makes and who reads them."""

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["user", "assistant", "function", "observation"]
Stage = Literal["pt", "sft", "rm", "dpo", "kto", "ppo", "grpo"]

PROMPT_STAGES: tuple[Stage, ...] = ("ppo", "grpo")
"""Stages whose rows are prompts: the model answers them itself."""

PAIR_STAGES: tuple[Stage, ...] = ("rm",)
"""Stages whose rows are pairs: two answers to one prompt, of which the first is the better."""

IGNORE_INDEX = -100
"""Label of a token that is not trained on (PyTorch's cross-entropy default)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Example: Message("user", "What is the capital of France?")
    """

    role: Role
    content: str


# Made by raytune.data.formats, read by raytune.data.encode.
@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data set, whatever its format was.

    `messages` alternates user|observation and assistant|function and, for sft, ends with an answer.
    For pt the text is the content of the single message. For ppo and grpo an answer at the end is a given one, which
    the prompt goes without, and `columns` is a JSON object of what rewards are told of the row. In a pair
    the last message is the chosen answer, and `rejected` the other one.

    Example: Sample((Message("user", "hi"), Message("assistant", "Hello!")), system="Be terse.")
    """

    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""
    columns: str = ""
    rejected: Message | None = None


# Made by raytune.data.encode and raytune.data.pack, written to the row store, read by raytune.data.collate.
@dataclass(frozen=True, slots=True)
class Encoded:
    """What the model sees of one row; lists of equal length T.

    `position_ids` and `attention_mask` are set for packed rows only: positions restart with each packed sample, and
    the mask numbers the samples 1, 2, ... (0 is padding), so that attention never crosses samples. A prompt has no
    labels, but `columns`, a JSON object. A pair is a packed row of two: prompt and chosen, prompt and rejected answer.

    Example: Encoded([1, 520, 2], [-100, 520, 2])
    """

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int] = field(default_factory=list)
    attention_mask: list[int] = field(default_factory=list)
    columns: str = ""
