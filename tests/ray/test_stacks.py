"""Stacks of actors that cannot answer any call."""

import itertools
import time
from typing import Any

import pytest
import ray

from actors import stacks

pytestmark = pytest.mark.usefixtures("ray_local")


class Stuck:
    def __init__(self) -> None:
        stacks.register("stuck")

    def ready(self) -> None: ...

    def compute(self) -> None:
        """One call into C that never gives the interpreter back: no thread of this process runs Python meanwhile."""
        sum(itertools.repeat(1))


def test_a_process_that_holds_the_interpreter_shows_where_it_is() -> None:
    actor: Any = ray.remote(Stuck).options(num_cpus=0).remote()
    ray.get(actor.ready.remote(), timeout=60)
    actor.compute.remote()
    deadline = time.monotonic() + 60
    while True:
        (seen,) = [one for one in stacks.collect() if one.what == "stuck"]
        if "in compute" in seen.text:
            break
        assert time.monotonic() < deadline, seen.text
    ray.kill(actor)
    assert "test_stacks.py" in seen.innermost
