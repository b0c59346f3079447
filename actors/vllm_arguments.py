"""What vLLM's engine can be told, without importing vLLM: that takes seconds, and a driver needs the names alone."""

import ast
from importlib.util import find_spec
from pathlib import Path

_FILE = Path("engine", "arg_utils.py")
_CLASSES = ("EngineArgs", "AsyncEngineArgs")


def known_arguments() -> dict[str, str] | None:
    """Engine arguments by name, with their annotations; None where they are not found, and only the engine can say."""
    package = find_spec("vllm")
    folders = (package.submodule_search_locations if package else None) or []
    sources = [Path(folder) / _FILE for folder in folders]
    found = [source for source in sources if source.is_file()]
    return arguments_in(found[0].read_text(encoding="utf-8")) or None if found else None


def arguments_in(source: str) -> dict[str, str]:
    """The fields of the two dataclasses: whatever their bodies annotate."""
    kinds = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name in _CLASSES]
    fields = [line for kind in kinds for line in kind.body if isinstance(line, ast.AnnAssign)]
    return {line.target.id: ast.unparse(line.annotation) for line in fields if isinstance(line.target, ast.Name)}
