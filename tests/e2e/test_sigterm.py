"""SIGTERM to the whole process group, as `timeout` and batch systems send it: Ray's processes are in that group."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from raytune.engine.checkpoint import CheckpointStore, damaged_files
from tests.helpers.processes import finish, start_cli, wait_for

# Far below every deadline that would end a run whose Ray is gone.
SOON = 40.0


def end_group(process: subprocess.Popen[str]) -> str:
    """Send it twice, as `timeout` does: to the process and to its group."""
    process.terminate()
    os.killpg(process.pid, signal.SIGTERM)
    sent = time.monotonic()
    said = finish(process)
    assert time.monotonic() - sent < SOON
    assert process.returncode == 1, said
    assert "Traceback" not in said
    return said


def left_of(process: subprocess.Popen[str]) -> list[str]:
    """Names of processes of the group that are still there after a while."""
    deadline = time.monotonic() + 10.0
    while left := [p.name() for p in psutil.process_iter() if p.pid != process.pid and session_of(p) == process.pid]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.2)
    return []


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def test_a_terminated_group_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start_cli(tmp_path, output_dir=str(out), num_train_epochs=300)
    wait_for(out / "trainer_log.jsonl", process)
    said = end_group(process)
    assert f"Interrupted and saved in {out}. The same command goes on from there" in said
    (step,) = CheckpointStore(out).steps()
    assert not damaged_files(out / f"checkpoint-{step}")
    assert left_of(process) == []


def test_a_group_terminated_before_its_first_step_ends_with_a_word(tmp_path: Path) -> None:
    process = start_cli(tmp_path, output_dir=str(tmp_path / "out"), num_train_epochs=300)
    deadline = time.monotonic() + SOON
    while "raylet" not in [child.name() for child in psutil.Process(process.pid).children()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    assert "interrupted without saving" in end_group(process)
    assert left_of(process) == []
