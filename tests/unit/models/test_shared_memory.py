"""What killed runs leave in shared memory is given back, and nobody else's is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from raytune.models.shared_memory import claim

SPACE = os.readlink("/proc/self/ns/pid") if sys.platform == "linux" else ""


def folder_of(
    parent: Path, name: str, pid: int, started: float, *, hours: float, output: str = "", space: str = SPACE
) -> Path:
    folder = parent / name
    folder.mkdir()
    owner = {"pid": pid, "started": started, "output": output, "space": space}
    for path, text in (
        (folder / "owner.json", json.dumps(owner)),
        (folder / "slot-0.bin", ""),
    ):
        path.write_text(text)
        then = path.stat().st_mtime - 3600 * hours
        os.utime(path, (then, then))
    return folder


@pytest.fixture(scope="module")
def dead() -> int:
    """A process id that was in use once."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


def test_only_old_folders_of_dead_processes_go(tmp_path: Path, dead: int) -> None:
    now = psutil.Process().create_time()
    gone = folder_of(tmp_path, "raytune-a", dead, now, hours=2)
    young = folder_of(tmp_path, "raytune-b", dead, now, hours=0.5)
    alive = folder_of(tmp_path, "raytune-c", os.getpid(), now, hours=2)
    reused = folder_of(tmp_path, "raytune-d", os.getpid(), now - 9999, hours=2)
    foreign = folder_of(tmp_path, "other-e", dead, now, hours=2)
    nobodys = tmp_path / "raytune-f"
    nobodys.mkdir()
    claim(tmp_path / "raytune-new", output="/runs/a")
    assert not gone.exists()
    assert not reused.exists()
    assert all(folder.exists() for folder in (young, alive, foreign, nobodys))


def test_a_folder_is_taken_over(tmp_path: Path, dead: int) -> None:
    mine = folder_of(tmp_path, "raytune-a", dead, 1.0, hours=2)
    claim(mine, output="/runs/a")
    assert json.loads((mine / "owner.json").read_text())["pid"] == os.getpid()
    assert (mine / "slot-0.bin").exists()


def test_what_a_killed_run_left_goes_when_it_is_started_again(tmp_path: Path, dead: int) -> None:
    now = psutil.Process().create_time()
    killed = folder_of(tmp_path, "raytune-1-a", dead, now, hours=0, output="/runs/a")
    another = folder_of(tmp_path, "raytune-2-a", dead, now, hours=0, output="/runs/b")
    alive = folder_of(tmp_path, "raytune-3-a", os.getpid(), now, hours=0, output="/runs/a")
    # This run's own, of another node of the machine: engines there may still read what a dead rank wrote.
    beside = folder_of(tmp_path, "raytune-new-b", dead, now, hours=0, output="/runs/a")
    # Of another container with its own process ids, and the same path inside.
    elsewhere = folder_of(tmp_path, "raytune-4-a", dead, now, hours=0, output="/runs/a", space="pid:[1]")
    claim(tmp_path / "raytune-new-a", output="/runs/a")
    assert not killed.exists()
    assert all(folder.exists() for folder in (another, alive, beside, elsewhere))
