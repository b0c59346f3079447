"""Whether a vLLM engine lives: it answers, or it computes. A frozen one does neither.

Workers that share a model wait for each other, spinning: beside a dead or frozen one they look busy, so each of them
must compute. While they wait for a frozen core they do not: only their idle threads poll.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import psutil

from raytune.errors import ReplicaLostError
from raytune.log import get_logger

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = get_logger(__name__)

# Most steps are over by then; a long prompt on a CPU takes many of these.
_PATIENCE = 0.2
# In which a core that computes has used some processor time; one that is crowded out may need a second such look.
_LOOK = 0.8
_LOOKS = 2
# Seconds of a look that the idle threads of a worker may use; threads that compute or spin use all of it.
_POLLING = 0.05
# In the titles that vLLM gives its processes.
_WORKER = "VLLM::Worker"


class Pulse:
    """Asks an engine for its weights' version, which goes through the core's loop; vLLM's own health check does not.

    Args: busy: seconds that the core may compute without an answer; more, and it is taken for stuck.
    """

    def __init__(self, engine: "AsyncLLM | None", busy: float) -> None:
        self._engine, self._busy = engine, busy
        self._question: asyncio.Task[str] | None = None
        self._answered = time.monotonic()
        self._idle = 0
        self._workers = [] if engine is None else computing()

    async def version(self) -> str | None:
        """The version, or None if the core is at work and has not answered yet.

        Errors: ReplicaLostError if it neither answers nor works; what the engine raises.
        """
        if self._engine is None:
            raise ReplicaLostError("the replica has no engine yet")
        # vLLM tells of a dead worker only when it has given up the others, which takes it ten seconds.
        if not all(map(_lives, self._workers)):
            raise ReplicaLostError("a process of the engine has ended")
        if self._question is not None and self._question.done() and self._question.exception() is None:
            # It was answered after the last look, so it lives; but the answer may be older than an update since.
            self._question, self._answered, self._idle = None, time.monotonic(), 0
        if self._question is None:
            self._question = asyncio.create_task(self._engine.get_weight_version())
        # A question that is open stays open; a second one would only wait behind it.
        question = self._question
        await asyncio.wait({question}, timeout=_PATIENCE)
        before: Mapping[int, tuple[float, float]] = {}
        if not question.done():
            before = processor_seconds(self._workers)
            await asyncio.wait({question}, timeout=_LOOK)
        if question.done():
            self._question = None if self._question is question else self._question
            self._answered, self._idle = time.monotonic(), 0
            return question.result()
        self._idle = 0 if _all_worked(before, processor_seconds(self._workers)) else self._idle + 1
        silent = time.monotonic() - self._answered
        if self._idle >= _LOOKS or silent > self._busy:
            raise ReplicaLostError(f"the engine has not answered for {silent:.0f} s")
        return None


def engine_processes() -> list[psutil.Process]:
    """Processes of the engine that this process has started: its core, and workers if there are several."""
    return [process for process in psutil.Process().children(recursive=True) if "VLLM" in _title(process)]


def computing() -> list[psutil.Process]:
    """The processes of the engine that compute: its workers, or the core that is its own."""
    found = engine_processes()
    return [process for process in found if _WORKER in _title(process)] or found


def processor_seconds(processes: Sequence[psutil.Process]) -> dict[int, tuple[float, float]]:
    """Processor time so far, of the main thread and of all, of each process by its id."""
    return {process.pid: _seconds(process) for process in processes}


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        log.debug("process %s of the engine has ended", process.pid)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _all_worked(before: Mapping[int, tuple[float, float]], after: Mapping[int, tuple[float, float]]) -> bool:
    return bool(before) and all(_worked(spent, after.get(pid, spent)) for pid, spent in before.items())


def _worked(before: tuple[float, float], after: tuple[float, float]) -> bool:
    return after[0] > before[0] or after[1] > before[1] + _POLLING


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _seconds(process: psutil.Process) -> tuple[float, float]:
    try:
        threads = {one.id: one.user_time + one.system_time for one in process.threads()}
    except psutil.Error:
        return 0.0, 0.0
    return threads.get(process.pid, 0.0), sum(threads.values())
