"""cluster.yaml against Ray's own schema, offline."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def accept(cluster: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does before it asks the provider for anything."""
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_cluster_yaml(cluster: dict[str, Any]) -> None:
    prepared = accept(cluster)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_the_schema_is_really_asked(cluster: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="max_wrokers"):
        accept({**cluster, "max_wrokers": 4})


def test_unknown_key_of_a_node_type_is_refused(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu_worker"]["min_wrokers"] = 1
    with pytest.raises(ValidationError, match="min_wrokers"):
        accept(cluster)


def test_workers_fit_below_the_cluster_maximum(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    workers = {name: kind for name, kind in kinds.items() if name != cluster["head_node_type"]}
    assert sum(kind["min_workers"] for kind in workers.values()) <= cluster["max_workers"]


def test_nodes_install_the_folder_that_is_copied_to_them(cluster: dict[str, Any]) -> None:
    folders = [target for target, source in cluster["file_mounts"].items() if source == "."]
    assert any(folder in command for folder in folders for command in cluster["setup_commands"])


def test_image_has_a_ray_that_the_package_allows(cluster: dict[str, Any]) -> None:
    image_version = cluster["docker"]["image"].split(":")[1].split("-")[0]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==")[1] for line in lines if line.startswith("ray==")]
    assert pinned == [image_version]
