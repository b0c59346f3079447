"""Run a program that a model wrote: in a process of its own, without network, with limits, in a folder that goes.

What the process may do is said and enforced in raytune/rewards/confined.py. It needs Linux on x86_64 or aarch64, no
privileges, and works in containers; where it cannot be enforced nothing runs.
"""

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from raytune.rewards.base import RewardUnavailable

CHILD = Path(__file__).with_name("confined.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take. seconds: wall time. memory: bytes of address space. file_size: bytes of one file, its
    output included. files: open at once."""

    seconds: float = 5.0
    memory: int = 1024**3
    file_size: int = 16 * 1024**2
    files: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    status: as the shell has it, below 0 the signal that ended it; None past the time limit, when it was killed.
    passed: indices of the tests that it passed. output: what it printed. landlock: version of the kernel's, 0 without;
    None if the time was over before the program began.
    """

    status: int | None
    passed: frozenset[int]
    output: str
    landlock: int | None


def run_program(code: str, limits: Limits, *, tests: Sequence[str] | None = None, stdin: str = "") -> Outcome:
    """Run Python code, and then, one after the other in its namespace, tests: statements that raise if they fail.

    With tests the code is imported (`__name__` is "answer"), without it is a script that may read stdin.
    Raises RewardUnavailable if the process ends before it is confined.
    """
    token = secrets.token_hex(16)
    job = {
        "code": code,
        "tests": None if tests is None else list(tests),
        "token": token,
        "cpu": math.ceil(limits.seconds) + 1,
        "memory": limits.memory,
        "file_size": limits.file_size,
        "files": limits.files,
    }
    with (
        _file(json.dumps(job)) as job_file,
        _file("") as report,
        _file(stdin) as given,
        _file("") as printed,
        _file("") as complaints,
        tempfile.TemporaryDirectory(prefix="raytune-answer-", ignore_cleanup_errors=True) as scratch,
    ):
        status = _run(scratch, limits.seconds, job=job_file, report=report, streams=(given, printed, complaints))
        lines = [line.split() for line in _read(report).splitlines()]
        marks = [line[1:] for line in lines if line[:1] == [token]]
        if not marks and status is not None:
            raise _unconfined(status, _read(complaints))
        passed = frozenset(int(mark[0]) for mark in marks[1:])
        landlock = int(marks[0][1]) if marks else None
        return Outcome(status=status, passed=passed, output=_read(printed), landlock=landlock)


def _run(
    scratch: str, seconds: float, *, job: IO[bytes], report: IO[bytes], streams: tuple[IO[bytes], IO[bytes], IO[bytes]]
) -> int | None:
    """Run the child to its end or to the limit, when its whole process group is killed. Returns its status or None."""
    fds = (job.fileno(), report.fileno())
    process = subprocess.Popen(
        [sys.executable, "-I", str(CHILD), *map(str, fds)],
        cwd=scratch,
        env=_environment(scratch),
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        pass_fds=fds,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of ours, tokens above all, but where libraries are; one thread, as many programs run at once."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"} | threads | libraries


def _unconfined(status: int | None, complaints: str) -> RewardUnavailable:
    last = (complaints.strip().splitlines() or [f"status {status}"])[-1]
    return RewardUnavailable(
        "the process for programs that the model wrote did not start or could not be confined",
        where=last,
        fix="The code reward needs Linux with seccomp on x86_64 or aarch64.",
    )


@contextmanager
def _file(text: str) -> Iterator[IO[bytes]]:
    """An unnamed file with a text, read from its start."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode(errors="replace"))
        file.seek(0)
        yield file


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
