"""Which source files read which key: a scan of the program's own sources, for `config explain` and a test."""

import ast
from functools import cache
from pathlib import Path

from raytune.config.keys import KEYS

CONFIG = Path(__file__).parent
SOURCES = (CONFIG.parent, CONFIG.parent.parent / "actors")
GROUPS = frozenset(key.group for key in KEYS.values())
HOLDERS = GROUPS | {"cfg", "config"}
"""What a variable that holds a config or one of its groups is called; a longer name may end in _cfg or _config."""


@cache
def readers() -> dict[str, tuple[str, ...]]:
    """Map each key to the files outside raytune/config that read it, as "raytune/models/adapters.py"."""
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    for path in source_files():
        for key in keys_read(path.read_text(encoding="utf-8")):
            found[key].append(path.relative_to(CONFIG.parent.parent).as_posix())
    return {key: tuple(files) for key, files in found.items()}


def source_files() -> list[Path]:
    """The program's sources but for this package."""
    files = sorted(path for root in SOURCES for path in root.rglob("*.py"))
    return [path for path in files if CONFIG not in path.parents]


def keys_read(source: str) -> set[str]:
    """The keys that appear as attributes of something that is named like a config.

    Example: keys_read("rank = cfg.adapter.lora_rank") == {"lora_rank"}
    """
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    whole = "RunConfig" in source
    return {node.attr for node in nodes if node.attr in KEYS and _holds_config(node, whole)}


def _holds_config(node: ast.Attribute, whole: bool) -> bool:
    match node.value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            # A group and its key may share a name: where `cfg` is a whole run, cfg.template is the group.
            if whole and node.attr in GROUPS:
                return name in GROUPS
            return name in HOLDERS or name.endswith(("_cfg", "_config"))
    return False
