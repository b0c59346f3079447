"""How long a version of the embedded 135M model takes from the trainer's float32 weights into vLLM, on one machine.

    python benchmarks/weight_sync.py --rounds 5
    python benchmarks/weight_sync.py --rounds 5 --lora

A trainer rank and a vLLM replica run as actors of a local Ray, as in a run. `sync` is what `WeightSync.publish` takes:
gather, cast, write, verify, pause, load, commit, reset the caches, resume. `one by one` sends the same weights with one
call a tensor, as the simplest loops do. Bandwidths are of the bytes that travel; memory copy is measured in the same
process between the rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.rollout_replica import ReplicaSettings, start_replica
from actors.rollout_vllm import VllmReplica, vllm_env
from actors.weights import WeightPublisher
from actors.weights_messages import Sent, WeightSettings
from actors.weights_sender import WeightSender
from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path

ROOT = Path(__file__).parents[1]
_DEADLINE = 600


class Rank:
    """A trainer rank that does not train."""

    def __init__(self, model: str, threads: int, *, lora: bool) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if lora:
            config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
            self._model = get_peft_model(self._model, config)

    def open_weights(self, settings: WeightSettings) -> tuple[str, list[list[Any]]]:
        self._sender = WeightSender(self._model, settings, rank=0)
        return self._sender.opening

    def publish_weights(self, version: int, receivers: Mapping[str, Any]) -> Sent | None:
        return self._sender.publish(version, receivers)

    def resend_weights(self, receivers: Mapping[str, Any]) -> Sent:
        return self._sender.resend(receivers)

    def touch(self) -> None:
        """Change the weights a little, as a step would, so that nothing is left in a cache by chance."""
        import torch

        with torch.no_grad():
            for param in self._model.parameters():
                param.mul_(1.0001)

    def copy_seconds(self, num_bytes: int) -> float:
        """One copy between two warm buffers of this size."""
        import torch

        source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
        target.copy_(source)
        started = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - started

    def send_one_by_one(self, replica: Any) -> float:
        """Each tensor by a call of its own, through the object store, waiting for each; returns seconds."""
        import torch

        started = time.perf_counter()
        ray.get(replica.begin_one_by_one.remote(), timeout=_DEADLINE)
        for name, param in self._model.named_parameters():
            array = param.detach().to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
            ray.get(replica.take_one.remote(name, array), timeout=_DEADLINE)
        ray.get(replica.end_one_by_one.remote(), timeout=_DEADLINE)
        return time.perf_counter() - started


class Replica(VllmReplica):
    """A replica that also takes tensors one by one, which no run does."""

    async def begin_one_by_one(self) -> None:
        self._single = Path("/dev/shm") / f"raytune-single-{os.getpid()}"
        await self._on_engine("pause_generation", mode="keep")
        await self._on_engine("start_weight_update")

    async def take_one(self, name: str, array: Any) -> None:
        array.tofile(self._single)
        arguments = (name, list(array.shape), str(self._single))
        await self._on_engine("collective_rpc", "load_one", args=arguments)

    async def end_one_by_one(self) -> None:
        await self._on_engine("finish_weight_update", "0")
        await self._on_engine("reset_prefix_cache", reset_running_requests=True)
        await self._on_engine("resume_generation")
        self._single.unlink()

    async def _on_engine(self, method: str, *args: Any, **keys: Any) -> Any:
        engine: Any = self._parts()[0]
        calls = {
            "pause_generation": engine.pause_generation,
            "start_weight_update": engine.start_weight_update,
            "collective_rpc": engine.collective_rpc,
            "finish_weight_update": engine.finish_weight_update,
            "reset_prefix_cache": engine.reset_prefix_cache,
            "resume_generation": engine.resume_generation,
        }
        return await self._home.run(calls[method](*args, **keys), deadline=_DEADLINE, what=method)


class OneByOne:
    """Mixed into vLLM's worker: loads a single tensor into the update under way."""

    def load_one(self, name: str, shape: Sequence[int], path: str) -> None:
        import torch

        size = 2 * torch.Size(shape).numel()
        worker: Any = self
        value = torch.from_file(path, shared=False, size=size, dtype=torch.uint8).view(torch.bfloat16).view(*shape)
        # The reload keeps tensors until their layer is whole; this file holds another one by then.
        worker.weight_transfer_engine.model.load_weights([(name, value.clone())])


def started_replica(model: str, threads: int, *, lora: bool) -> Any:
    """A vLLM replica as a run has it."""
    settings = ReplicaSettings(
        model,
        dtype="bfloat16",
        max_length=512,
        eager=True,
        adapter_rank=8 if lora else 0,
        threads=threads,
        engine_args={"worker_extension_cls": "benchmarks.weight_sync.OneByOne"},
    )
    env = {
        **vllm_env(settings, gpu=False),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    replica = start_replica(Replica, settings, env=env)
    ray.get(replica.build.remote(), timeout=_DEADLINE)
    return replica


def measure(rank: Any, replica: Any, publisher: WeightPublisher, *, rounds: int, lora: bool) -> dict[str, list[float]]:
    """Seconds of each part, by round; the first two rounds make the files and are not counted."""
    found: dict[str, list[float]] = {}
    for number in range(rounds + 2):
        ray.get(rank.touch.remote(), timeout=_DEADLINE)
        seconds = dict(publisher.publish(number + 1))
        if not lora:
            copying = rank.copy_seconds.remote(publisher.num_bytes)
            seconds["memory copy"] = ray.get(copying, timeout=_DEADLINE)
            seconds["one by one"] = ray.get(rank.send_one_by_one.remote(replica), timeout=_DEADLINE)
        if number >= 2:
            for part, value in seconds.items():
                found.setdefault(part, []).append(value)
    return found


def report(found: Mapping[str, Sequence[float]], num_bytes: int) -> str:
    """A table in milliseconds, and the ratios that matter."""
    medians = {part: statistics.median(values) for part, values in found.items()}
    lines = [f"{'part':24} {'median ms':>10} {'all':>6}"]
    for part, values in found.items():
        shown = " ".join(f"{1000 * value:.0f}" for value in values)
        lines.append(f"{part:24} {1000 * medians[part]:>10.1f} {shown}")
    lines.append(f"bytes: {num_bytes:,}")
    if "memory copy" in medians:
        share = medians["memory copy"] / medians["write"]
        lines.append(f"transfer (cast, write, digest) against a memory copy: {100 * share:.0f} %")
        lines.append(f"one by one / sync: {medians['one by one'] / medians['sync']:.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lora", action="store_true", help="the adapter alone")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of rank and engine each")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    options = parser.parse_args()
    model = resolve_model_path(EMBEDDED_NAME)
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    try:
        rank: Any = ray.remote(Rank).options(num_cpus=1).remote(model, options.threads, lora=options.lora)
        replica = started_replica(model, options.threads, lora=options.lora)
        publisher = WeightPublisher([rank], [replica], WeightSettings(f"bench-{os.getpid()}", max_lora_rank=8))
        found = measure(rank, replica, publisher, rounds=options.rounds, lora=options.lora)
        print(report(found, publisher.num_bytes))
        if options.json:
            options.json.write_text(json.dumps(found))
        publisher.close()
        ray.get(replica.shutdown.remote(), timeout=_DEADLINE)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
