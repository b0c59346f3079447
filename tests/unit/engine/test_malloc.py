"""Freed memory is used again: a pass takes the pages of the one before, and asks the kernel for few."""

import os
import platform
import subprocess
import sys

import pytest

from raytune.engine.malloc import KEEP_FREED_MEMORY

FAULTS = """
import ctypes
import resource
import sys
import torch
from raytune.engine.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(2 << 20) for _ in range(16)]  # 128 MiB: 32,768 pages of 4 KiB
    del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
if "called" in sys.argv:
    assert keep_freed_memory()
elif "default" in sys.argv:
    ctypes.CDLL(None).mallopt(-3, 128 << 10)  # as glibc begins: each tensor a mapping
print(*(faults() for _ in range(6)))
"""


def faults(how: str, env: dict[str, str]) -> list[int]:
    """Page faults of six passes, one after the other."""
    command = [sys.executable, "-c", FAULTS, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, **env})
    return [int(count) for count in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_pass_takes_the_pages_of_the_one_before() -> None:
    given_back = min(faults("default", {}))
    assert given_back > 0
    for kept in (faults("called", {}), faults("by environment", KEEP_FREED_MEMORY)):
        assert max(kept[2:]) < given_back / 4
