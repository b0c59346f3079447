"""A Ray of a test's own."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_ray() -> Iterator[None]:
    """A local Ray of eight logical CPUs; its folder's name is short, for socket paths have a limit."""
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
