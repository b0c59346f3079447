"""Load a run's config: flat keys from a file and the command line, put into frozen groups and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raytune.config.base import Group
from raytune.config.checks.broken import Broken
from raytune.config.checks.idle import harmless_keys
from raytune.config.compat import compat
from raytune.config.keys import KEYS, STAGE_DEFAULTS, alternatives, describe_type, group_types
from raytune.config.rules import RULES
from raytune.config.run import RunConfig
from raytune.config.source import Item, read_overrides, read_source
from raytune.config.translate import Problem, our_name, translate
from raytune.errors import ConfigError

SECRETS = frozenset(
    {
        "hf_hub_token",
        "ms_hub_token",
        "hub_token",
        "judge_api_key",
        "swanlab_api_key",
        "swanlab_lark_secret",
        "swanlab_lark_webhook_url",
    }
)
"""Keys whose values are never written or shown."""


# Made here, read by launch, chat, export and the CLI.
@dataclass(frozen=True, slots=True)
class Resolved:
    """A config with the origin of each key ("train.yaml line 7", "command line", "default") and what to warn about.

    Example: load_config(Path("train.yaml"), ["seed=1"]).origin["seed"] == "command line"
    """

    config: RunConfig
    origin: dict[str, str]
    warnings: tuple[str, ...]


def load_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> Resolved:
    """Load a config and check everything that does not depend on the verb.

    Args: source: a .yaml, .yml or .json file, or flat keys. overrides: `key=value`, `--key value`, `--key=value` or a
        lone `--key` (true), values as YAML; they replace the file's.
    Errors: one ConfigError with every problem found, each with its place.
    """
    words = read_overrides(overrides, frozenset(KEYS) | compat().names())
    # An override takes the place of what the file says under any name, with all that it would have meant.
    replaced = {our_name(item.key) for item in words}
    file = translate(item for item in read_source(source) if our_name(item.key) not in replaced)
    line = translate(words)
    items = file.items | line.items
    for implied in [*line.implied, *file.implied]:
        items.setdefault(implied.key, implied)
    _add_stage_defaults(items)
    problems = [*file.problems, *line.problems]
    name = Path(source).name if isinstance(source, Path | str) else "config"
    config = build(items, problems, name)
    if config is not None:
        problems += [_place(broken, items) for rule in RULES if (broken := rule(config)) is not None]
    if problems or config is None:
        raise as_error(problems, name)
    origin = {key: items[key].where if key in items else "default" for key in KEYS}
    idle = [
        f"'{key}' ({origin[key]}) has no effect in stage {config.train.stage}: {why}"
        for key, why in harmless_keys(config)
    ]
    return Resolved(config, origin, (*file.warnings, *line.warnings, *idle))


def _add_stage_defaults(items: dict[str, Item]) -> None:
    """Where a stage wants another default than the others, it stands for what the user left out."""
    stage = items["stage"].value if "stage" in items else None
    for key, value in STAGE_DEFAULTS.get(stage, {}).items() if isinstance(stage, str) else ():
        items.setdefault(key, Item(key, value, f"default of stage {stage}"))


def build(items: Mapping[str, Item], problems: list[Problem], name: str) -> RunConfig | None:
    """Put items into their groups and freeze them; what a group does not take is added to `problems`."""
    values: dict[str, dict[str, Any]] = {}
    groups: dict[str, Group] = {}
    for key, item in items.items():
        values.setdefault(KEYS[key].group, {})[key] = item.value
        if isinstance(item.value, bool) and not takes_bool(key):
            problems.append(wrong_value(item))
    for group, owner in group_types().items():
        try:
            groups[group] = owner.model_validate(values.get(group, {}))
        except ValidationError as error:
            found = {str(detail["loc"][0]): detail for detail in reversed(error.errors())}
            problems += [_refused(detail, items.get(key), key, name) for key, detail in found.items()]
    clean = not problems and len(groups) == len(group_types())
    return RunConfig.model_validate(groups) if clean else None


def takes_bool(key: str) -> bool:
    """False for numbers: pydantic would read true as 1."""
    kinds = set(alternatives(KEYS[key].info.annotation))
    return bool in kinds or not kinds & {int, float}


def _refused(detail: ErrorDetails, item: Item | None, key: str, name: str) -> Problem:
    if item is None:
        return Problem(f"key '{key}' is missing", name, f"Add '{key}: ...' ({KEYS[key].doc.rstrip('.')}).")
    return wrong_value(item)


def wrong_value(item: Item) -> Problem:
    """Say what a key was given and what it takes."""
    shown = str(item.value).lower() if isinstance(item.value, bool) else repr(item.value)
    what = f"'{item.key}' takes {describe_type(KEYS[item.key])}, not {'null' if item.value is None else shown}"
    return Problem(what, item.where)


def _place(broken: Broken, items: Mapping[str, Item]) -> Problem:
    where = [f"{key}: {items[key].where}" for key in broken.keys if key in items]
    return Problem(broken.what, ", ".join(where) or None, broken.fix)


def as_error(problems: Sequence[Problem], name: str) -> ConfigError:
    """Make one error of all problems."""
    errors = [ConfigError(problem.what, where=problem.where, fix=problem.fix) for problem in dict.fromkeys(problems)]
    if len(errors) == 1:
        return errors[0]
    return ConfigError(f"{len(errors)} problems in {name}:" + "".join(f"\n  {error}" for error in errors))


def dump(config: RunConfig) -> dict[str, Any]:
    """Return the flat config, ready for JSON or YAML; it loads back equal, but for secrets, which are left out."""
    groups = config.model_dump(mode="json")
    return {key: groups[entry.group][key] for key, entry in KEYS.items() if key not in SECRETS}
