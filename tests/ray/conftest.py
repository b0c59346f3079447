"""One local Ray for all tests of this folder, and runs on it that several tests compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.local_ray import local_ray
from tests.helpers.runs import run_keys
from tests.helpers.trained import LONG, run


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    with local_ray():
        yield


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
