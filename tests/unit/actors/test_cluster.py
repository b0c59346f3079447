import os
from pathlib import Path

import pytest

from actors.cluster import is_in_jobs_copy, local_node, named_cluster
from actors.placement import NodeShape
from raytune.config.cluster import ClusterConfig
from raytune.errors import PlacementError


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_local_cluster_has_the_cores_or_as_many_cpus_as_the_run_counts():
    assert local_node(ClusterConfig(), cpus=1) == NodeShape("this machine", cpus=2, gpus=0)
    assert local_node(ClusterConfig(), cpus=5.5, gpus=1) == NodeShape("this machine", cpus=6, gpus=1)


def test_what_the_user_tells_ray_wins():
    cfg = ClusterConfig(ray_init_kwargs={"num_cpus": 3, "num_gpus": 0})
    assert local_node(cfg, cpus=5, gpus=2) == NodeShape("this machine", cpus=3, gpus=0)


def test_many_times_the_cores_is_a_slip():
    with pytest.raises(PlacementError, match="needs 17 CPUs, this machine has 2"):
        local_node(ClusterConfig(), cpus=17)


def test_the_config_names_a_cluster_before_the_environment_does(monkeypatch):
    assert named_cluster(ClusterConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert named_cluster(ClusterConfig()) == "10.0.0.1:6379"
    assert named_cluster(ClusterConfig(ray_address="10.0.0.2:6379")) == "10.0.0.2:6379"


def test_only_a_jobs_copy_of_its_working_directory_is_lost(monkeypatch, tmp_path):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_4f1c"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert not is_in_jobs_copy(copy / "saves")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert is_in_jobs_copy(copy / "saves")
    assert not is_in_jobs_copy(Path("/nfs/saves"))
    monkeypatch.chdir(tmp_path)
    assert not is_in_jobs_copy(tmp_path / "saves")
