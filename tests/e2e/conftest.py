"""A real cluster of two nodes on this host, each with its own processes, ports, temporary folder and address.

`ray stop` would end every cluster of the machine, so the nodes end by their processes.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import ray

from tests.helpers.local_ray import local_ray

RAY = str(Path(sys.executable).with_name("ray"))
# Not 127.0.0.1, which Ray replaces by an address of its own choice.
HEAD, SECOND = "127.0.0.2", "127.0.0.3"
_START_DEADLINE = 120.0
_JOB_DEADLINE = 180.0
_STOP_DEADLINE = 5.0
_PER_NODE = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)
# Random ports for workers: two nodes on one host would fight for the default range.
_SMALL = (
    "--num-cpus=1",
    "--num-gpus=0",
    "--object-store-memory=100000000",
    "--min-worker-port=0",
    "--max-worker-port=0",
)


class TwoNodes:
    """A head and a second node of one CPU each, and the job API of the head.

    Without RAY_AUTH_* in the environment, whether commands may talk to the cluster depends on what else ran in HOME.
    """

    def __init__(self) -> None:
        # A short name: paths of sockets have a limit.
        self.folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
        self.second_tmp = self.folder / "tmp2"
        self.second_tmp.mkdir()
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_JOB_STOP_WAIT_TIME_S": "30"}
        self.environment = {**kept, **auth}
        gcs, dashboard, client, *self._ports = _free_ports(3 + 2 * len(_PER_NODE))
        self.address = f"{HEAD}:{gcs}"
        self.head_options = [
            "--head",
            f"--dashboard-host={HEAD}",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
        ]
        self.api = f"http://{HEAD}:{dashboard}"
        self._token = token.read_text()

    def start(self) -> None:
        """Start both nodes. Raises: AssertionError, TimeoutExpired."""
        self._start_node(*self.head_options, address=HEAD, folder="head")
        environment = {**self.environment, "TMPDIR": str(self.second_tmp)}
        self._start_node(f"--address={self.address}", address=SECOND, folder="second", environment=environment)
        deadline = time.monotonic() + _START_DEADLINE
        while (alive := self._nodes_alive()) < 2:
            assert time.monotonic() < deadline, f"{alive} of 2 nodes joined within {_START_DEADLINE:g} s"
            time.sleep(0.3)

    def _start_node(self, *options: str, address: str, folder: str, environment: dict[str, str] | None = None) -> None:
        own = [f"--{name}={self._ports.pop()}" for name in _PER_NODE]
        where = [f"--node-ip-address={address}", f"--temp-dir={self.folder / folder}", "--disable-usage-stats"]
        command = [RAY, "start", *options, *own, *where, *_SMALL]
        done = _run(command, environment or self.environment, deadline=_START_DEADLINE)
        assert done.returncode == 0, done.stdout

    def _nodes_alive(self) -> int:
        request = urllib.request.Request(
            f"{self.api}/nodes?view=summary", headers={"Authorization": f"Bearer {self._token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            summary = json.load(answer)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in summary)

    def submit(self, folder: Path, *overrides: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of `raytune train run.yaml` in `folder`; with `wait`, stdout holds the followed log."""
        options = ["--address", self.api, "--working-dir", str(folder), *([] if wait else ["--no-wait"])]
        command = [RAY, "job", "submit", *options, "--", sys.executable, "-m", "raytune.cli", "train", "run.yaml"]
        deadline = time.monotonic() + _START_DEADLINE
        # The head takes jobs some seconds after it has started.
        while "No available agent" in (done := self.call(*command, *overrides)).stdout:
            assert time.monotonic() < deadline, done.stdout
            time.sleep(1.0)
        return done

    def job(self, verb: str, job_id: str) -> str:
        """`ray job logs|stop|status` of a job: what it prints."""
        return self.call(RAY, "job", verb, "--address", self.api, job_id).stdout

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return _run(list(command), self.environment, deadline=_JOB_DEADLINE)

    def stop(self) -> None:
        """End every process of this cluster, and no other."""
        processes = _processes_of(self.folder)
        for process in processes:
            _signal(process, kill=False)
        _, alive = psutil.wait_procs(processes, timeout=_STOP_DEADLINE)
        for process in alive:
            _signal(process, kill=True)
        psutil.wait_procs(alive, timeout=_STOP_DEADLINE)
        shutil.rmtree(self.folder, ignore_errors=True)


def _run(command: list[str], environment: dict[str, str], *, deadline: float) -> subprocess.CompletedProcess[str]:
    # Into a file, for a pipe would stay open as long as the node's processes that inherit it.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=deadline,
            check=False,
        )
        output.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, output.read())


def _free_ports(count: int) -> list[int]:
    """Ports that are free on every address now; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Those with the cluster's folder in their command line, and what they started (it has other titles)."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()) and process.pid != os.getpid():
            try:
                family = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            found.update({member.pid: member for member in family})
    return list(found.values())


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[TwoNodes]:
    """The cluster; a busy machine makes Ray give up at times, so it is started anew once."""
    cluster = TwoNodes()
    try:
        try:
            cluster.start()
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            cluster.stop()
            cluster = TwoNodes()
            cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A local Ray, unless another test of this folder has one up."""
    if ray.is_initialized():
        yield
        return
    with local_ray():
        yield
