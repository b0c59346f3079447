import os
import sys
from pathlib import Path

import pytest

from benchmarks.watch import RunError, Watched, watch

TRAINS = """
import json, sys, time
ballast = bytearray(64 << 20)
ballast[::4096] = b"x" * len(ballast[::4096])
with open("log.jsonl", "w") as log:
    for step in (1, 2, 3):
        time.sleep(0.7)
        log.write(json.dumps({"current_steps": step, "loss": 3.0 - step}) + "\\n"); log.flush()
    log.write(json.dumps({"current_steps": 3}) + "\\n")
"""


def run(code: str, folder: Path, *, deadline: float = 60) -> Watched:
    return watch(
        [sys.executable, "-c", code],
        log=folder / "log.jsonl", output=folder / "out.txt", env=os.environ, cwd=folder, deadline=deadline,
    )  # fmt: skip


def test_steps_are_timed_when_they_are_logged_and_memory_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.watch.MEMORY_SECONDS", 0.5)
    watched = run(TRAINS, tmp_path)

    assert [(step.number, step.loss) for step in watched.steps] == [(1, 2.0), (2, 1.0), (3, 0.0)]
    assert watched.steps[2].seconds - watched.steps[0].seconds == pytest.approx(1.4, abs=0.5)
    assert 64 << 20 < watched.peak_process <= watched.peak_tree


def test_a_failure_shows_the_end_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such template"):
        run("import sys; sys.exit('no such template')", tmp_path)


def test_a_run_past_its_deadline_is_ended_and_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"did not end within 1 s"):
        run("import time; time.sleep(60)", tmp_path, deadline=1)
