"""Every runnable YAML loads, says only what differs from the defaults, and names things that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytune.config.keys import KEYS
from raytune.config.load import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TRAINING = [path for path in CONFIGS if path.parent.name != "export"]
TEMPLATES = {path.stem for path in (ROOT / "raytune" / "data" / "templates").glob("*.yaml")}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def flat(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_there_are_configs() -> None:
    assert {name_of(path) for path in CONFIGS} >= {"configs/demo.yaml", "configs/sft/smollm2_lora.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_loads_without_a_warning(path: Path) -> None:
    resolved = load_config(path)
    assert resolved.warnings == ()
    assert resolved.config.model.model_name_or_path == flat(path)["model_name_or_path"]


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_opens_with_one_comment_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert re.fullmatch(r"# .{20,}", lines[0])
    assert not any("#" in line for line in lines[1:])


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_says_only_what_differs_from_the_defaults(path: Path) -> None:
    keys = flat(path)
    given = load_config(path).config.model_dump()
    plain = _defaults(keys, stage=keys.get("stage", "sft"))
    same = [
        key for key in keys if key not in ("model_name_or_path", "stage") and _value(given, key) == _value(plain, key)
    ]
    assert same == []
    assert keys.get("stage") != _value(_defaults(keys), "stage")


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_data_sets_are_registered_and_not_empty(path: Path) -> None:
    registry = json.loads((ROOT / "data" / "dataset_info.json").read_text())
    for dataset in flat(path)["dataset"].split(","):
        assert (ROOT / "data" / registry[dataset]["file_name"]).stat().st_size > 0


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_template_exists(path: Path) -> None:
    assert flat(path).get("template", "empty") in TEMPLATES


def test_output_folders_are_not_shared() -> None:
    folders = [flat(path)["output_dir"] for path in TRAINING]
    assert len(set(folders)) == len(folders)


def test_export_merges_what_a_config_trains() -> None:
    trained = {flat(path)["output_dir"] for path in TRAINING}
    for path in set(CONFIGS) - set(TRAINING):
        assert flat(path)["adapter_name_or_path"] in trained


def _defaults(keys: dict[str, Any], **stage: str) -> dict[str, Any]:
    """What a config of the same model and stage has without a word more."""
    return load_config({"model_name_or_path": keys["model_name_or_path"], **stage}).config.model_dump()


def _value(groups: dict[str, Any], key: str) -> object:
    return groups[KEYS[key].group][key]
