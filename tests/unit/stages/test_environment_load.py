"""Classes of environments by their import path or file, and what is refused."""

from pathlib import Path

import pytest

from raytune.errors import ConfigError
from raytune.stages.calculator import Calculator
from raytune.stages.environment import check_environment, load_environment


def test_what_cannot_be_made_is_refused_before_a_run(tmp_path: Path) -> None:
    check_environment("raytune.stages.calculator:Calculator")
    file = tmp_path / "needs_level.py"
    verbs = "    async def reset(self, prompt): ...\n    async def step(self, text, ids): ...\n"
    file.write_text(f"class E:\n    def __init__(self, level): ...\n{verbs}")
    with pytest.raises(ConfigError, match=r"cannot be made: TypeError.*'level'"):
        check_environment(f"{file}:E")
    broken = tmp_path / "misspelt.py"
    broken.write_text("level = lvel + 1\n")
    with pytest.raises(ConfigError, match="cannot be imported: NameError: name 'lvel' is not defined"):
        check_environment(f"{broken}:E")


def test_environments_are_found_by_module_and_by_file(tmp_path: Path) -> None:
    assert load_environment("raytune.stages.calculator:Calculator") is Calculator
    file = tmp_path / "mine.py"
    file.write_text("class E:\n    async def reset(self, prompt): ...\n    async def step(self, text, ids): ...\n")
    assert load_environment(f"{file}:E").__name__ == "E"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("calculator", "no environment 'calculator'"),
        ("raytune.stages.nowhere:X", "cannot be imported"),
        ("/nowhere/mine.py:X", "there is no file /nowhere/mine.py"),
        ("raytune.stages.calculator:Missing", "no class 'Missing'"),
        ("raytune.stages.environment:Reply", "no async method reset and none step"),
    ],
)
def test_what_is_no_environment_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_environment(spec)
