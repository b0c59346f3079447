"""One local Ray for all tests of this folder, and runs on it that several tests compare with."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.helpers.runs import run_keys
from tests.helpers.trained import LONG, run


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of eight logical CPUs; its folder's name is short, for socket paths have a limit."""
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data and cache that short runs share."""
    folder = tmp_path_factory.mktemp("runs")
    run_keys(folder)
    return folder


@pytest.fixture(scope="session")
def whole(home: Path, ray_local: None) -> Path:
    """The folder of a LONG run that nothing disturbed."""
    return run(home, **LONG, output_dir=str(home / "whole")).folder


@pytest.fixture(scope="session")
def whole_of_two(home: Path, ray_local: None) -> Path:
    """The same on two ranks (ddp)."""
    return run(home, **LONG, output_dir=str(home / "whole-of-two"), num_workers=2).folder
