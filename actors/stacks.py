"""What every process of a run does right now: the stacks of all its threads, even of those that are stuck in C.

signal -> faulthandler in each process -> its file on its node -> collected by the driver
A handler in C needs no interpreter that is free: an actor that waits in a collective, or holds the lock, answers too.
"""

import faulthandler
import getpass
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytune.log import get_logger

log = get_logger(__name__)

_SIGNAL = signal.SIGUSR1
# For a process to write, and for a task on another node to start.
_WRITE_SECONDS = 2.0
_TASK_SECONDS = 20.0
_POLL = 0.05
# The file must live as long as the handler that writes into it.
_open: list[TextIO] = []


@dataclass(frozen=True, slots=True)
class Stack:
    """One process. Example: Stack("rank 0", "9f1c04", 4711, "Thread 0x... (most recent call first): ...")"""

    what: str
    node: str
    pid: int
    text: str

    @property
    def innermost(self) -> str:
        """Where its main thread is, in one line; faulthandler shows that thread last."""
        threads = self.text.strip().split("\n\n")
        return next((line.strip() for line in threads[-1].splitlines() if line.strip().startswith("File")), self.text)


def register(what: str) -> None:
    """Have this process write its stacks when it is asked to. Args: what: its name there, without a slash."""
    if _open:
        return
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    _sweep(folder)
    context = ray.get_runtime_context()
    name = f"{context.get_job_id()}_{context.get_node_id()}_{os.getpid()}_{_started(os.getpid())}_{what}"
    file = (folder / name).open("w")
    _open.append(file)
    faulthandler.register(_SIGNAL, file=file, all_threads=True)


def unregister() -> None:
    """Undo `register`: the driver may be a process that goes on with other things."""
    faulthandler.unregister(_SIGNAL)
    while _open:
        file = _open.pop()
        file.close()
        Path(file.name).unlink(missing_ok=True)


def collect() -> list[Stack]:
    """The stacks of all registered processes of this job, on all nodes; a node that does not answer is left out."""
    context = ray.get_runtime_context()
    job, home = context.get_job_id(), context.get_node_id()
    away = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != home]
    refs = {}
    for node in away:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(stacks_of_node).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
        refs[node] = task.remote(job, node)
    found = stacks_of_node(job, home)
    deadline = time.monotonic() + _TASK_SECONDS
    for node, ref in refs.items():
        try:
            found += ray.get(ref, timeout=max(deadline - time.monotonic(), 0.1))
        except (RayError, GetTimeoutError) as error:
            log.warning("node %s does not tell its stacks: %s", node[:6], type(error).__name__)
    return found


def stacks_of_node(job: str, node: str) -> list[Stack]:
    """Ask the processes of one node, by the files that they made there."""
    asked = []
    for path in sorted(_folder().glob(f"{job}_{node}_*")):
        _, _, pid, started, what = path.name.split("_", 4)
        if _started(int(pid)) == started:
            before = path.stat().st_size
            os.kill(int(pid), _SIGNAL)
            asked.append((what, int(pid), path, before))
    return [Stack(what, node[:6], pid, _written(pid, path, before)) for what, pid, path, before in asked]


def _written(pid: int, path: Path, before: int) -> str:
    """What a process has written behind byte `before`, once it writes no more."""
    size, deadline = before, time.monotonic() + _WRITE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        now = path.stat().st_size if path.exists() else before
        if now == size > before:
            return path.read_bytes()[before:].decode(errors="replace")
        size = now
    try:
        return f"no answer; the process is {psutil.Process(pid).status()}"
    except psutil.Error:
        return "the process is gone"


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f".raytune-stacks-{getpass.getuser()}"


def _started(pid: int) -> str | None:
    """When a process began, so that a later one of the same number is not taken for it."""
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


def _sweep(folder: Path) -> None:
    """Delete the files of processes that are gone."""
    for path in folder.iterdir():
        _, _, pid, started, _ = path.name.split("_", 4)
        if _started(int(pid)) != started:
            path.unlink(missing_ok=True)
