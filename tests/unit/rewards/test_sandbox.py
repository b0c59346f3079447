import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import raytune.rewards.sandbox as sandbox
from raytune.rewards.base import RewardUnavailable
from raytune.rewards.sandbox import Limits, Outcome, run_program

LIMITS = Limits(seconds=10)

ATTEMPT = """
import ctypes, os, resource, signal, socket, subprocess, threading
try:
    done = {expression}
except BaseException as error:
    print(type(error).__name__)
else:
    print("done", done)
"""


def attempt(expression: str) -> str:
    return run_program(ATTEMPT.format(expression=expression), LIMITS).output.strip()


def test_a_script_reads_and_prints() -> None:
    outcome = run_program("print(int(input()) * 2)", LIMITS, stdin="21\n")
    assert (outcome.status, outcome.output) == (0, "42\n")


def test_tests_see_what_the_code_made() -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return P(x + 1)"
    outcome = run_program(code, LIMITS, tests=["assert f(1).x == 2", "assert f(1).x == 3", "syntax error", "f(0)"])
    assert outcome.passed == {0, 3}


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert attempt(f"socket.create_connection(('127.0.0.1', {port}), 1)") == "PermissionError"
    assert attempt("socket.socket(socket.AF_UNIX)") == "PermissionError"
    assert attempt("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)") == "PermissionError"


@pytest.mark.parametrize(
    "expression",
    [
        "os.fork()",
        "subprocess.run(['true'])",
        "os.execv('/bin/true', ['true'])",
        "os.setsid()",
        "os.kill(os.getppid(), 0)",
        "os.kill(-1, signal.SIGKILL)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "os.memfd_create('m')",
    ],
)
def test_no_other_process_is_made_or_touched(expression: str) -> None:
    assert attempt(expression) == "PermissionError"


def test_threads_work() -> None:
    assert attempt("threading.Thread(target=print, args=('inside',)).start()").splitlines()[0] in (
        "inside",
        "done None",
    )


def test_limits_hold_and_cannot_be_raised() -> None:
    assert attempt("len(bytearray(2 * 1024**3))") == "MemoryError"
    assert attempt("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))") == "ValueError"
    assert attempt("open('big', 'wb').write(bytes(17 * 1024**2))") == "OSError"
    assert attempt("[open('f', 'w') for _ in range(100)]") == "OSError"


def test_the_environment_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    assert "secret" not in attempt("dict(os.environ)")
    assert attempt("os.environ.get('A_TOKEN')") == "done None"


def test_files_are_written_in_the_scratch_folder_only_and_it_goes(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("ours")
    outcome = run_program("import os; open('mine', 'w').write('x'); print(os.getcwd(), os.listdir())", LIMITS)
    folder, listed = outcome.output.split(maxsplit=1)
    assert listed.strip() == "['mine']"
    assert Path(folder).parent == Path(tempfile.gettempdir())
    assert not Path(folder).exists()
    if not outcome.landlock:
        pytest.skip("this kernel has no Landlock")
    for expression in (
        f"open({str(kept)!r}, 'w')",
        f"os.remove({str(kept)!r})",
        f"os.mkdir({str(tmp_path / 'new')!r})",
    ):
        assert attempt(expression) == "PermissionError"
    assert kept.read_text() == "ours"


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time; time.sleep(60)", "import threading; threading.Event().wait()"]
)
def test_a_program_that_hangs_is_killed_at_the_limit(code: str) -> None:
    begun = time.monotonic()
    outcome = run_program(code, Limits(seconds=0.5), tests=["assert True"])
    assert (outcome.status, outcome.passed) == (None, frozenset())
    assert time.monotonic() - begun < 5


def test_a_program_whose_time_is_over_before_it_begins_has_passed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "confined.py"
    child.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(sandbox, "CHILD", child)
    outcome = run_program("print(1)", Limits(seconds=0.1), tests=["assert True"])
    assert outcome == Outcome(status=None, passed=frozenset(), output="", landlock=None)


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(0)", "import os; os._exit(0)", "import os; os.abort()", "raise KeyboardInterrupt"]
)
def test_an_early_end_passes_nothing(code: str) -> None:
    assert run_program(code, LIMITS, tests=["assert True"]).passed == frozenset()


def test_what_passed_before_a_crash_counts() -> None:
    tests = ["assert True", "import os; os._exit(1)", "assert True"]
    assert run_program("", LIMITS, tests=tests).passed == {0}


def test_a_forged_report_passes_nothing() -> None:
    code = (
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'x ready 0\\nx 0\\n0\\n')\n    except OSError: pass"
    )
    assert run_program(code, LIMITS, tests=["assert False"]).passed == frozenset()


def test_programs_run_beside_each_other() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(run_program(f"print({n})", LIMITS).output)) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == ["0\n", "1\n", "2\n", "3\n"]


def test_a_program_ends_with_its_owner() -> None:
    owner = (
        "from raytune.rewards.sandbox import Limits, run_program\n"
        "run_program('import os, time; print(os.getpid(), flush=True); time.sleep(50)', Limits(seconds=50))"
    )
    process = subprocess.Popen([sys.executable, "-c", owner], cwd=Path(__file__).parents[3])
    child = _wait_for_child(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/cwd").exists() and "confined" in _command(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "confined" not in _command(child)


def _wait_for_child(pid: int) -> int:
    """The sandbox that a process started, once it has given up its rights."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*"):
            status = _text(path / "status")
            if f"PPid:\t{pid}\n" in status and "Seccomp:\t2" in status:
                return int(path.name)
        time.sleep(0.02)
    raise AssertionError("no sandbox within 30 s")


def _command(pid: int) -> str:
    return _text(Path(f"/proc/{pid}/cmdline"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_where_nothing_can_be_confined_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "confined.py"
    child.write_text("raise OSError(38, 'Function not implemented')\n")
    monkeypatch.setattr(sandbox, "CHILD", child)
    with pytest.raises(RewardUnavailable, match="Function not implemented"):
        run_program("print(1)", LIMITS)
