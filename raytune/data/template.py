"""What stands around each message of a conversation: named templates in YAML, or the tokenizer's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from raytune.data.tools import TOOL_FORMATS
from raytune.errors import DataError
from raytune.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raytune.config.template import TemplateConfig

TEMPLATE_DIR = Path(__file__).parent / "templates"
CONTENT = "{{content}}"


@dataclass(frozen=True, slots=True)
class Special:
    """The tokenizer's own token of a kind, absent where it has none. Example: Special("bos")"""

    kind: Literal["bos", "eos"]


Element = str | Special
"""A string is tokenised by itself: tokens never merge across the border of two elements."""

Slot = tuple[Element, ...]


# Made by load_template, read by render and encode. A value: two runs in one process share nothing.
@dataclass(frozen=True, slots=True)
class Template:
    """A template and the settings it is used with.

    `efficient_eos`: answers carry no end token, the next turn's first token stands for it. `thought_words`: begin and
    end of a thought, for templates that know thinking. `text_end`: what ends a pre-training text, the eos token if
    None. `own`: the tokenizer's chat template is used, the slots are not.
    """

    name: str
    user: Slot = (CONTENT,)
    assistant: Slot = (CONTENT, Special("eos"))
    system: Slot = (CONTENT,)
    observation: Slot = ()
    function: Slot = ()
    prefix: Slot = ()
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    efficient_eos: bool = False
    replace_eos: bool = False
    thought_words: tuple[str, str] | None = None
    tool_format: str = "default"
    text_end: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False
    compat: bool = False
    own: bool = False

    def fix_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give the tokenizer the template's end token and, where it has none, a pad token (the end token)."""
        if self.replace_eos and tokenizer.eos_token != self.stop_words[0]:
            tokenizer.add_special_tokens({"eos_token": self.stop_words[0]})
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token",
                fix="Choose a template that sets one (chatml, qwen3, llama3), or give the tokenizer an eos_token.",
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def stop_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Ids that end an answer: the end token and the stop words that are single tokens of the vocabulary."""
        known = [_single_id(word, tokenizer) for word in self.stop_words]
        return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, *known) if token is not None))

    def prompt_ids(
        self, messages: Sequence[Message], system: str, tools: str, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        """Token ids of a conversation that waits for its next answer.

        Args: messages: they end with a user or observation turn. system, tools: "" for none.
        """
        from raytune.data.prompts import prompt_ids  # prompts reads this module

        return prompt_ids(messages, system, tools, self, tokenizer)


def template_names() -> list[str]:
    """The names that `template` may have, besides 'auto'."""
    return sorted(path.stem for path in TEMPLATE_DIR.glob("*.yaml"))


def load_template(name: str | None, tokenizer: PreTrainedTokenizerBase, cfg: TemplateConfig) -> Template:
    """Return the template of a run, checked against its tokenizer.

    Args: name: a template's name; None or "auto" for the tokenizer's own chat template.
    Raises: DataError for an unknown name, a template whose special tokens the tokenizer does not have, or a tokenizer
        without a chat template.
    """
    if cfg.tool_format is not None and cfg.tool_format not in TOOL_FORMATS:
        raise DataError(
            f"tool_format '{cfg.tool_format}' is not built yet", fix=f"Built are {', '.join(TOOL_FORMATS)}."
        )
    template = _own(tokenizer) if name in (None, "auto") else read_template(str(name))
    _check_fit(template, tokenizer)
    compat = cfg.compat == "llamafactory"
    template = replace(
        template,
        default_system=template.default_system if cfg.default_system is None else cfg.default_system,
        enable_thinking=cfg.enable_thinking,
        preserve_thinking=cfg.preserve_thinking,
        compat=compat,
    )
    if cfg.tool_format is None or template.own:
        return template
    # LLaMA-Factory forgets the template's own ending of an answer here.
    function = (CONTENT, Special("eos")) if compat else template.function
    return replace(template, tool_format=cfg.tool_format, function=function)


def read_template(name: str) -> Template:
    """Read templates/<name>.yaml; `extends: other` takes over what the file does not say."""
    names = template_names()
    if name not in names:
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        remedy = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(names)}, and auto."
        raise DataError(f"unknown template '{name}'", fix=remedy)
    raw = _read_yaml(name)
    slots = ("user", "assistant", "system", "observation", "function", "prefix")
    lists = ("stop_words", "tokens", "thought_words")
    given: dict[str, Any] = {
        key: _slot(value) if key in slots else tuple(value) if key in lists else value for key, value in raw.items()
    }
    given.setdefault("observation", given["user"])
    given.setdefault("function", given["assistant"])
    return Template(name=name, **given)


def _read_yaml(name: str) -> dict[str, Any]:
    raw = yaml.safe_load((TEMPLATE_DIR / f"{name}.yaml").read_text(encoding="utf-8"))
    base = raw.pop("extends", None)
    return {**_read_yaml(base), **raw} if base else raw


def _slot(raw: str | list[Any]) -> Slot:
    elements = [raw] if isinstance(raw, str) else raw
    return tuple(element if isinstance(element, str) else Special(element["token"]) for element in elements)


def _own(tokenizer: PreTrainedTokenizerBase) -> Template:
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template",
            fix=f"Name one: template: default, or one of {', '.join(template_names())}.",
        )
    return Template(name="auto", own=True)


def _check_fit(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    missing = [token for token in template.tokens if _single_id(token, tokenizer) is None]
    if missing:
        raise _misfit(template, tokenizer.name_or_path or "this model", missing)


def check_vocabulary(template: Template, folder: Path) -> None:
    """The same check in milliseconds, for a model folder whose tokenizer.json is the whole vocabulary.

    Raises: DataError when a special token of the template is not in it. A folder without that file passes.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not template.tokens or not file.is_file():
        return
    vocabulary = Tokenizer.from_file(str(file))
    # Tokens may also stand in tokenizer_config.json alone.
    beside = folder / "tokenizer_config.json"
    more = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    missing = [token for token in template.tokens if vocabulary.token_to_id(token) is None and token not in more]
    if missing:
        raise _misfit(template, str(folder), missing)


def _misfit(template: Template, owner: str, missing: Sequence[str]) -> DataError:
    return DataError(
        f"template '{template.name}' does not fit the tokenizer of {owner}: {', '.join(missing)} would be cut into "
        "pieces",
        fix="Use template: auto, or add them with add_special_tokens and resize_vocab: true.",
    )


def _single_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    ids = tokenizer(token, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    unknown = len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and token != tokenizer.unk_token)
    return None if unknown else ids[0]
