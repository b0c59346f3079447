"""What every config group is made of."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Group(BaseModel):
    """A small frozen set of keys with one reader. The string under a field is its documentation everywhere."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    built: ClassVar[bool] = True
    """False marks every key of the group as not built yet."""


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """Marks a key, or some of its values, whose feature is not built yet: loading accepts it, launching refuses it.

    Example: use_dora: Annotated[bool, NotBuilt()] = False      # any value but the default is refused at launch
    Example: stage: Annotated[Stage, NotBuilt(("ppo", "grpo"))] = "sft"      # only these values are refused
    """

    values: tuple[object, ...] | None = None


def split_commas(value: Any) -> Any:
    """Turn "a, b" into ("a", "b") and null into (); anything else is left to the field's type."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def no_is_a_word(value: Any) -> Any:
    """YAML 1.1 reads a bare `no` as false; for keys whose choices include the word it is the word."""
    return "no" if value is False else value


def none_is_empty(value: Any) -> Any:
    """`report_to: none` and null both mean nobody."""
    parts = split_commas(value)
    return () if parts in (("none",), ["none"]) else parts


Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
"""A list that a file may write as one comma-separated string."""

Floats = Annotated[tuple[float, ...], BeforeValidator(split_commas)]
"""A list of numbers that a file may write as one comma-separated string."""

When = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(no_is_a_word)]
"""When something that repeats happens."""
