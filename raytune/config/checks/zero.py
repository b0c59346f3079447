"""The ZeRO stage of a DeepSpeed configuration."""

import json
from pathlib import Path
from typing import Any


def zero_stage(deepspeed: dict[str, Any] | str | None) -> int:
    """Return 0 to 3; 0 where there is no configuration, or none that can be read yet.

    Both DeepSpeed's own form, {"zero_optimization": {"stage": 3}}, and the flat one, {"stage": 3}, are understood.
    A file that is missing or damaged is an error of whoever reads it to use it.
    """
    content = _read(deepspeed) if isinstance(deepspeed, str) else deepspeed
    if not isinstance(content, dict):
        return 0
    inner = content.get("zero_optimization", content)
    stage = inner.get("stage", 0) if isinstance(inner, dict) else 0
    return stage if isinstance(stage, int) else 0


def _read(path: str) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
