"""A cluster of one head whose autoscaler may start one more node, as processes of this host."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import HEAD, TwoNodes

DEADLINE = 150.0
RESERVE = """
import sys
import ray
from actors.placement import make_plan
from actors.scheduler import release, reserve
from raytune.errors import PlacementError
from raytune.log import configure
address, cpus, timeout = sys.argv[1:]
configure()
ray.init(address=address, _node_ip_address=address.split(":")[0], log_to_driver=False)
try:
    plan = make_plan("grows", num_ranks=1, cpus_per_rank=float(cpus), gpus_per_rank=0)
    release(reserve(plan, timeout=float(timeout)))
except PlacementError as error:
    sys.exit(str(error))
print("reserved")
"""


class Growing(TwoNodes):
    """A head of one CPU, and a node of two CPUs that comes when it is needed."""

    def start(self) -> None:
        empty = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
                 "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
                 "worker_start_ray_commands")  # fmt: skip
        config = {
            "cluster_name": "growing",
            "max_workers": 1,
            "upscaling_speed": 1,
            "idle_timeout_minutes": 10,
            "file_mounts_sync_continuously": False,
            "provider": {"type": "fake_multinode", "gcs_address": self.address},
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
            },
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in empty},
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        environment = {**self.environment, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        options = (*self.head_options, f"--autoscaling-config={file}")
        self._start_node(*options, address=HEAD, folder="head", environment=environment)

    def reserve(self, *, cpus: int, timeout: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RESERVE, self.address, str(cpus), str(timeout)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE, check=False
        )


@pytest.fixture
def growing() -> Iterator[Growing]:
    cluster = Growing()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_a_run_waits_for_the_node_that_the_autoscaler_adds(growing):
    too_large = growing.reserve(cpus=3, timeout=4)
    assert "waiting for the autoscaler to add nodes: the run needs 3 CPUs, the cluster has 1" in too_large.stderr
    assert "the autoscaler added too few nodes within 4 s: the run needs 3 CPUs" in too_large.stderr
    assert "Traceback" not in too_large.stderr
    fits = growing.reserve(cpus=2, timeout=60)
    assert fits.stdout.strip() == "reserved", fits.stderr
