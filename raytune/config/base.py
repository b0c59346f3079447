"""What every config group is made of."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """A small frozen set of keys with one reader. The string under a field is its documentation everywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """Marks a key, or some of its values, whose feature is not built yet: loading accepts it, launching refuses it.

    Example: use_dora: Annotated[bool, NotBuilt()] = False      # any value but the default is refused at launch
    Example: stage: Annotated[Stage, NotBuilt(("ppo", "grpo"))] = "sft"      # only these values are refused
    """

    values: tuple[object, ...] | None = None
