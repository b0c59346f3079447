"""Runs in processes of their own, as a user starts them."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.runs import run_keys

DEADLINE = 240.0


def start_cli(home: Path, **keys: Any) -> subprocess.Popen[str]:
    """Start `raytune train` with the keys of a short run below `home`, and a Ray of its own.

    It leads a process group, so that Ctrl-C can go to all of it, as in a terminal.
    """
    return start_python("-m", "raytune.cli", "train", str(write_config(home, **keys)))


def start_python(*arguments: str) -> subprocess.Popen[str]:
    """Start this interpreter with its errors in a pipe."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def write_config(home: Path, **keys: Any) -> Path:
    """Write the keys of a short run below `home` as a YAML file of its own."""
    file = home / f"{time.monotonic_ns()}.yaml"
    file.write_text(yaml.safe_dump(run_keys(home, **keys)))
    return file


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until `path` is there; fail with what the process said if it ends before."""
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a process; returns what it wrote to stderr."""
    _, said = process.communicate(timeout=DEADLINE)
    return said
