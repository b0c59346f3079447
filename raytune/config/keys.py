"""Flat keys and their groups: derived from the groups, so that a key is declared once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raytune.config.base import Group, NotBuilt
from raytune.config.run import RunConfig


@dataclass(frozen=True, slots=True)
class Key:
    """One flat key.

    Example: KEYS["lora_rank"] == Key("lora_rank", "adapter", AdapterConfig, <its field>)
    """

    name: str
    group: str
    owner: type[Group]
    info: FieldInfo

    @property
    def default(self) -> Any:
        """The value when nobody sets the key; None for the one required key."""
        return None if self.info.default is PydanticUndefined else self.info.default

    @property
    def required(self) -> bool:
        return self.info.is_required()

    @property
    def not_built(self) -> NotBuilt | None:
        """The mark of the key, or of its group, that a feature comes later."""
        marks = [mark for mark in self.info.metadata if isinstance(mark, NotBuilt)]
        if marks:
            return marks[0]
        return None if self.owner.built else NotBuilt()

    @property
    def doc(self) -> str:
        return self.info.description or ""


def derive(groups: dict[str, type[Group]]) -> dict[str, Key]:
    """Map each field of each group to its key; a key in two groups is a mistake of ours and stops the import."""
    keys: dict[str, Key] = {}
    for group, owner in groups.items():
        for name, info in owner.model_fields.items():
            if name in keys:
                raise ValueError(f"key '{name}' is in groups '{keys[name].group}' and '{group}'")
            keys[name] = Key(name, group, owner, info)
    return keys


def group_types() -> dict[str, type[Group]]:
    """The groups of a run in their order."""
    found = {name: info.annotation for name, info in RunConfig.model_fields.items()}
    return {name: owner for name, owner in found.items() if isinstance(owner, type) and issubclass(owner, Group)}


KEYS: dict[str, Key] = derive(group_types())

# What learns from drawn answers draws them from the policy itself, not from a truncated one.
_DRAWN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 512, "logging_steps": 1}
STAGE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {
        **_DRAWN, "num_generations": 8, "ppo_epochs": 1, "kl_coef": 0.0, "advantage": "group", "kl_in_reward": False,
    },
    "ppo": {
        **_DRAWN, "num_generations": 1, "ppo_epochs": 4, "kl_coef": 0.2, "advantage": "gae", "kl_in_reward": True,
    },
}  # fmt: skip
"""Defaults that hold in one stage only."""


def default_of(name: str, stage: str) -> Any:
    """The value of a key that nobody sets, in a run of that stage."""
    return STAGE_DEFAULTS.get(stage, {}).get(name, KEYS[name].default)


def alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the plain types of a union, without Annotated around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation


def choices(key: Key) -> tuple[Any, ...]:
    """The allowed words of a key, () where it is not a choice."""
    found: list[Any] = []
    for part in alternatives(key.info.annotation):
        inner = get_args(part)[0] if get_origin(part) is tuple else part
        found += get_args(inner) if get_origin(inner) is Literal else ()
    return tuple(found)


def describe_type(key: Key) -> str:
    """Say in words what a key takes, such as "an integer >= 1, or null"."""
    parts = [words for words in (_words(part) for part in alternatives(key.info.annotation)) if words]
    options = choices(key)
    if options:
        many = any(get_origin(part) is tuple for part in alternatives(key.info.annotation))
        parts.insert(0, ("names among " if many else "one of ") + ", ".join(str(option) for option in options))
    text = ", or ".join(parts)
    limits = _limits(key.info.metadata)
    if NoneType in set(alternatives(key.info.annotation)):
        return f"{text}{limits}, or null"
    return text + limits


TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    date: "a date as YYYY-MM-DD",
    Any: "anything",
}


def _words(part: Any) -> str:
    if part in TYPE_WORDS:
        return TYPE_WORDS[part]
    match get_origin(part):
        case origin if origin is dict:
            return "a mapping"
        case origin if origin is tuple and get_origin(get_args(part)[0]) is not Literal:
            return "numbers separated by commas" if get_args(part)[0] is float else "names separated by commas"
    return ""


def _limits(metadata: list[Any]) -> str:
    limits = []
    for mark in metadata:
        match mark:
            case Ge(ge=bound):
                limits.append(f">= {bound:g}")
            case Gt(gt=bound):
                limits.append(f"> {bound:g}")
            case Le(le=bound):
                limits.append(f"<= {bound:g}")
            case Lt(lt=bound):
                limits.append(f"< {bound:g}")
    return f" {' and '.join(limits)}" if limits else ""
