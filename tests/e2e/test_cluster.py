"""`ray job submit -- raytune train` on a real cluster of two nodes, one CPU each: two ranks must span both."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.conftest import HEAD, SECOND, TwoNodes
from tests.helpers.runs import run_keys

DEADLINE = 180.0


def losses(folder: Path) -> list[float]:
    lines = (folder / "trainer_log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.2)


def bytes_between_nodes(log: str) -> tuple[int, int]:
    found = re.search(r"([\d,]+) bytes of files went to other nodes, ([\d,]+) bytes came", log)
    assert found, log
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user submits: model, data and a config with relative paths, which each node has in a folder of its own.

    The cache of prepared rows is relative too: the second node has none, so rows reach it by travelling.
    """
    folder = tmp_path_factory.mktemp("job")
    keys = run_keys(
        folder, model_name_or_path="model", dataset_dir="data", data_cache_dir="cache", num_workers=2, engine="ddp",
        cpus_per_worker=1, lr_scheduler_type="constant", save_strategy="epoch",
    )  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(keys))
    return folder


@pytest.fixture(scope="module")
def alone(two_nodes: TwoNodes, workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of two epochs on one rank of a local Ray, without a break."""
    folder = tmp_path_factory.mktemp("alone")
    overrides = ["num_workers=1", "engine=single", "num_train_epochs=2", f"output_dir={folder / 'out'}"]
    overrides += [f"data_cache_dir={folder / 'cache'}"]
    command = [sys.executable, "-m", "raytune.cli", "train", "run.yaml", *overrides]
    done = subprocess.run(
        command, cwd=workdir, env=two_nodes.environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saves") / "spanning"


@pytest.fixture(scope="module")
def first_log(two_nodes: TwoNodes, workdir: Path, out: Path) -> str:
    """The followed log of a job of one epoch."""
    done = two_nodes.submit(workdir, f"output_dir={out}")
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def second_log(two_nodes: TwoNodes, workdir: Path, out: Path, first_log: str) -> str:
    """The same job again, now with two epochs."""
    done = two_nodes.submit(workdir, f"output_dir={out}", "num_train_epochs=2")
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_job_spans_both_nodes_and_its_files_travel(two_nodes, out, first_log):
    ranks = re.search(r"2 nodes: rank 0 on (\S+), rank 1 on (\S+); files travel", first_log)
    assert ranks, first_log
    assert {ranks[1], ranks[2]} == {HEAD, SECOND}
    sent, received = bytes_between_nodes(first_log)
    # The rows of this data set and a shard of optimizer state are some kilobytes each.
    assert sent > 1000
    assert received > 1000
    assert not list(two_nodes.second_tmp.glob("raytune-*")), "copies stay on the second node"
    names = {str(path.relative_to(out)) for path in out.rglob("*")}
    shards = {f"checkpoint-3/optimizer/{name}" for name in (".metadata", "__0_0.distcp", "__1_0.distcp")}
    assert shards <= names
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "checkpoint-3/manifest.json"} <= names
    assert {"trainer_log.jsonl", "trainer_state.json", "all_results.json", "resolved_config.json"} <= names


def test_a_job_goes_on_from_its_checkpoint_and_logs_the_losses_of_one_rank(out, alone, first_log, second_log):
    assert f"resuming from {out / 'checkpoint-3'}" in second_log
    assert "step 3/6" not in second_log
    checkpoint = sum(path.stat().st_size for path in (out / "checkpoint-3").rglob("*") if path.is_file())
    assert bytes_between_nodes(second_log)[0] > checkpoint
    assert len(losses(alone)) == 6
    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)


def test_answers_of_one_node_teach_a_rank_of_the_other_and_weights_travel_back(two_nodes, workdir, tmp_path):
    out = tmp_path / "grpo"
    keys = {
        "stage": "grpo", "placement": "disaggregated", "num_workers": 1, "engine": "auto", "rollout_cpus": 0.5,
        "reward_cpus": 0.5, "rollout_backend": "hf", "reward_funcs": "regex", "reward_regex": "(?i)[a-z]",
        "global_batch_size": 2, "num_generations": 4, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        "max_steps": 2, "save_strategy": "no", "output_dir": out,
    }  # fmt: skip
    done = two_nodes.submit(workdir, *(f"{key}={value}" for key, value in keys.items()))
    assert done.returncode == 0, done.stdout
    first, second = map(json.loads, (out / "trainer_log.jsonl").read_text().splitlines())
    # The rank fills one node. Only where a replica is on another one are weights sent through the object store.
    assert min(first["time_sync_send"], second["time_sync_send"]) > 0
    assert first["reward_std"] > 0
    assert first["grad_norm"] > 0
    # Log-probs of both programs agree to float32 before and after the first update: its weights have arrived.
    assert max(first["mismatch_abs"], second["mismatch_abs"]) < 1e-5


def test_a_plan_that_does_not_fit_names_the_nodes_and_a_lost_output_is_foretold(two_nodes, workdir):
    done = two_nodes.submit(workdir, "output_dir=saves/out", "num_workers=3", "global_batch_size=9")
    warning = next(line for line in done.stdout.splitlines() if "Ray's copy of the submitted folder" in line)
    assert re.search(r"output_dir /\S+/working_dir_files/\S+/saves/out lies", warning)
    assert "storage_path" in warning
    assert done.returncode == 1
    error = next(line for line in done.stdout.splitlines() if "PlacementError" in line)
    assert "the run needs 3 CPUs, the cluster has 2" in error
    assert f"{HEAD} 1" in error
    assert f"{SECOND} 1" in error
    assert "Set num_workers: 2" in error
    assert "Traceback" not in done.stdout


def test_copies_that_a_killed_driver_left_on_the_other_node_go_with_the_next_run(two_nodes, workdir, tmp_path):
    killed = tmp_path / "killed"
    two_nodes.submit(workdir, "num_train_epochs=100000", "save_strategy=no", f"output_dir={killed}", wait=False)
    wait_for(killed / "trainer_log.jsonl")
    (driver,) = (p for p in psutil.process_iter(["cmdline"]) if f"output_dir={killed}" in (p.info["cmdline"] or ()))
    driver.kill()
    driver.wait(DEADLINE)
    left = set(two_nodes.second_tmp.glob("raytune-*"))
    assert len(left) == 1
    done = two_nodes.submit(workdir, f"output_dir={tmp_path / 'next'}")
    assert done.returncode == 0, done.stdout
    assert not list(two_nodes.second_tmp.glob("raytune-*"))


def test_a_busy_cluster_names_the_holder_and_a_stopped_job_saves(two_nodes, workdir, tmp_path):
    held = tmp_path / "held"
    long = ("num_train_epochs=100000", "save_strategy=no", "run_name=holder", f"output_dir={held}")
    submitted = two_nodes.submit(workdir, *long, wait=False).stdout
    job_id = re.search(r"raysubmit_\w+", submitted)
    assert job_id, submitted
    wait_for(held / "trainer_log.jsonl")
    try:
        waiting = two_nodes.submit(workdir, f"output_dir={tmp_path / 'waiting'}", "placement_timeout=3")
    finally:
        two_nodes.job("stop", job_id[0])
    assert waiting.returncode == 1
    assert "waiting for resources: need 2 CPUs" in waiting.stdout
    error = next(line for line in waiting.stdout.splitlines() if "PlacementError" in line)
    assert "the cluster stayed busy for 3 s" in error
    assert "holder holds 2 CPUs" in error
    assert "Traceback" not in waiting.stdout
    assert "Interrupted and saved" in two_nodes.job("logs", job_id[0])
    assert list(held.glob("checkpoint-*/manifest.json"))
