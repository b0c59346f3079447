"""Read flat keys from files, mappings and the command line, and remember where each came from."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raytune.errors import ConfigError

COMMAND_LINE = "command line"


# Made here, read by raytune.config.translate.
@dataclass(frozen=True, slots=True)
class Item:
    """One key as the user gave it.

    Example: Item("lora_rank", 8, "train.yaml line 7")
    """

    key: str
    value: Any
    where: str


class FlatLoader(yaml.SafeLoader):
    """YAML as PyYAML reads it, but a date is text: run names look like dates."""


FlatLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_source(source: Path | str | Mapping[str, Any]) -> list[Item]:
    """Return the keys of a .yaml, .yml or .json file, or of a mapping.

    Errors: ConfigError for a missing or unreadable file, a file that is no mapping, and a key given twice.
    """
    if isinstance(source, Mapping):
        return [Item(str(key), value, "given mapping") for key, value in source.items()]
    path = Path(source)
    readers = {".yaml": read_yaml, ".yml": read_yaml, ".json": read_json}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"'{path}' is no config file", fix="Give a .yaml, .yml or .json file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such config file '{path}'", fix="Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file '{path}': {error}") from None
    items = readers[path.suffix.lower()](text, path.name)
    refuse_twins(items)
    return items


def read_yaml(text: str, name: str) -> list[Item]:
    """Return the top-level keys of YAML text with their lines."""
    try:
        loader = FlatLoader(text)
        root = loader.get_single_node()
        if root is None:
            return []
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("a config file is a mapping of keys to values", where=name)
        return [
            Item(str(key.value), loader.construct_object(value, deep=True), f"{name} line {key.start_mark.line + 1}")
            for key, value in root.value
        ]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not valid YAML: {error.problem}", where=f"{name} line {line}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {str(error).splitlines()[0]}", where=name) from None


def read_json(text: str, name: str) -> list[Item]:
    """Return the top-level keys of JSON text with their lines."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        # The parser closes the outermost mapping last, so that one stays.
        pairs[:] = found
        return dict(found)

    try:
        root = json.loads(text, object_pairs_hook=keep)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", where=f"{name} line {error.lineno}") from None
    if not isinstance(root, dict):
        raise ConfigError("a config file is a mapping of keys to values", where=name)
    start, items = 0, []
    for key, value in pairs if root else []:
        found = re.compile(rf"{re.escape(json.dumps(key, ensure_ascii=False))}\s*:").search(text, start)
        start = found.end() if found else start
        items.append(Item(key, value, f"{name} line {text.count(chr(10), 0, start) + 1}"))
    return items


def refuse_twins(items: Sequence[Item]) -> None:
    """Stop at a key that a file has twice: one of the two would be ignored."""
    seen: dict[str, Item] = {}
    for item in items:
        if item.key in seen:
            first = seen[item.key].where.rsplit(" ", 1)[-1]
            raise ConfigError(f"key '{item.key}' stands twice", where=f"{item.where}, first in line {first}")
        seen[item.key] = item


def read_overrides(words: Sequence[str], known: frozenset[str]) -> list[Item]:
    """Return the keys of `key=value`, `--key=value`, `--key value` and a lone `--key` (true). The last one wins.

    Args: words: as the shell split them. known: every known key, to tell `--packing max_steps=3` (two keys) from
        `--optim_args a=1` (one).
    """
    found: dict[str, Item] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--") and not equals:
            following = rest[0] if rest else "--"
            alone = following.startswith("--") or ("=" in following and following.partition("=")[0] in known)
            text = "true" if alone else rest.pop(0)
        elif not equals:
            raise ConfigError(f"cannot read '{word}' as an override", where=COMMAND_LINE, fix="Write key=value.")
        key = name.replace("-", "_")
        found.pop(key, None)
        found[key] = Item(key, parse_value(text), COMMAND_LINE)
    return list(found.values())


def parse_value(text: str) -> Any:
    """Read one value as YAML would. What is no YAML is text, and so is "Say: no": a mapping needs its braces here."""
    try:
        value = yaml.load(text, FlatLoader)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value
