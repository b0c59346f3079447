"""Freed memory is used again: a pass takes the pages of the one before, and asks the kernel for few."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes
import resource
import torch
from raytune.engine.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(2 << 20) for _ in range(16)]  # 128 MiB: 32,768 pages of 4 KiB
    del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
ctypes.CDLL(None).mallopt(-3, 128 << 10)  # as glibc begins: each tensor a mapping
given_back = [faults() for _ in range(6)]
assert keep_freed_memory()
kept = [faults() for _ in range(6)]
print(min(given_back), max(kept[2:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_pass_takes_the_pages_of_the_one_before() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 0
    assert kept < given_back / 4
