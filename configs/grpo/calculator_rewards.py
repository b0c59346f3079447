"""A reward function of one's own, in a file beside the recipe that names it."""

from collections.abc import Mapping, Sequence


def used_calculator(completions: Sequence[Sequence[Mapping[str, str]]], **columns: object) -> list[float]:
    """1 for a conversation in which the calculator gave a number, else 0."""
    tools = [[turn["content"] for turn in talk if turn["role"] == "tool"] for talk in completions]
    return [float(any("<result>" in said and "error" not in said for said in talk)) for talk in tools]
