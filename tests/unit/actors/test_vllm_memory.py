"""Memory outlives its name, and is gone with its last user."""

import os
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil

from actors.vllm_memory import give_up_names


def test_a_name_is_gone_and_the_memory_stays_with_those_that_mapped_it():
    queue, other = SharedMemory(create=True, size=4096), SharedMemory(f"raytune-{os.getpid()}", create=True, size=4096)
    reader = SharedMemory(queue.name)
    try:
        assert Path("/dev/shm", queue.name) in give_up_names([psutil.Process()])
        assert not Path("/dev/shm", queue.name).exists()
        assert Path("/dev/shm", other.name).exists()
        assert give_up_names([psutil.Process()]) == []
        assert queue.buf is not None
        assert reader.buf is not None
        queue.buf[0] = 7
        assert reader.buf[0] == 7
    finally:
        reader.close()
        # For Python to forget the two.
        Path("/dev/shm", queue.name).touch()
        for one in (queue, other):
            one.close()
            one.unlink()
