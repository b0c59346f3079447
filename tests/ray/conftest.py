"""One local Ray for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of eight logical CPUs; its folder's name is short, for socket paths have a limit."""
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
