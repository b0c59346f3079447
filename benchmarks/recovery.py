"""How long a run is without a rollout replica that dies: until nothing is sent to it any more, until it serves again.

    python -m benchmarks.recovery

Two vLLM replicas behind a run's router draw answers without a pause. One after the other, a replica's actor is killed,
its engine's core is killed, and its engine's core is stopped (it lives and does nothing). Each comes back with the
newest weights. What an engine takes to load is measured before, with the other replica idle.
"""

import argparse
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from actors.fleet import MemberView, State
from actors.rollout import start_router
from actors.rollout_pulse import engine_processes
from actors.rollout_replica import CONTROL, ReplicaSettings, start_replica
from actors.rollout_vllm import VllmReplica, vllm_env
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from benchmarks.weight_sync import ROOT, Rank
from raytune.models.embedded import EMBEDDED_NAME, resolve_model_path
from raytune.stages.samples import Prompt, Sampling

_DEADLINE = 900.0
_POLL = 0.05
FAULTS = ("actor killed", "core killed", "core stopped")


class MortalReplica(VllmReplica):
    """A replica that says which processes it consists of."""

    @ray.method(concurrency_group=CONTROL)
    async def processes(self) -> tuple[int, list[int]]:
        """Its own number and those of its engine."""
        return os.getpid(), [process.pid for process in engine_processes()]


@dataclass
class Load:
    """Prompts that are always on their way to a router."""

    router: Any
    groups: int
    tokens: int
    finished: int = 0
    _next: int = 0
    _refs: list[Any] = field(default_factory=list)

    def turn(self) -> None:
        """Take what is finished and ask for as much again. Raises what the router could not mend."""
        ready, self._refs = ray.wait(self._refs, num_returns=len(self._refs), timeout=0) if self._refs else ([], [])
        ray.get(ready, timeout=_DEADLINE)
        self.finished += len(ready)
        while len(self._refs) < self.groups:
            prompt = Prompt(self._next, self._next, np.array([1, 40 + self._next % 1000, 41, 42], np.int32))
            self._refs.append(self.router.generate.remote(prompt, Sampling(max_new_tokens=self.tokens), 4))
            self._next += 1

    def drain(self) -> None:
        ray.get(self._refs, timeout=_DEADLINE)
        self.finished += len(self._refs)
        self._refs = []


@dataclass(frozen=True, slots=True)
class Outage:
    """Seconds after a fault. quarantined: nothing is sent there any more. serving: again, with the newest weights."""

    fault: str
    quarantined: float
    serving: float


def suffer(fault: str, replica: Any, router: Any, load: Load, index: int) -> Outage:
    """Do it to replica `index` and wait until it serves again."""
    actor, cores = ray.get(replica.processes.remote(), timeout=_DEADLINE)
    restarts = _member(router, index).restarts
    started = time.monotonic()
    match fault:
        case "actor killed":
            os.kill(actor, signal.SIGKILL)
        case "core killed":
            for core in cores:
                os.kill(core, signal.SIGKILL)
        case _:
            for core in cores:
                os.kill(core, signal.SIGSTOP)
    quarantined = _until(lambda: _member(router, index).state is not State.HEALTHY, load, f"{fault}: a quarantine")
    serving = quarantined + _until(
        lambda: _member(router, index).state is State.HEALTHY and _member(router, index).restarts > restarts,
        load,
        f"{fault}: a replica that serves again",
    )
    return Outage(fault, quarantined, min(serving, time.monotonic() - started))


def _member(router: Any, index: int) -> MemberView:
    return ray.get(router.members.remote(), timeout=_DEADLINE)[index]


def _until(test: Callable[[], bool], load: Load, what: str) -> float:
    started = time.monotonic()
    while not test():
        if time.monotonic() - started > _DEADLINE:
            raise SystemExit(f"waited {_DEADLINE:g} s for {what}")
        load.turn()
        time.sleep(_POLL)
    return time.monotonic() - started


def started(settings: ReplicaSettings) -> tuple[Any, float]:
    """A replica that is ready, and the seconds of its process and its engine."""
    env = {
        **vllm_env(settings, gpu=False),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    begun = time.monotonic()
    replica = start_replica(MortalReplica, settings, env=env)
    ray.get(replica.build.remote(), timeout=_DEADLINE)
    return replica, time.monotonic() - begun


def report(outages: list[Outage], loads: list[float], load: Load) -> str:
    """A line for each kind of fault; medians."""
    engine = statistics.median(loads)
    lines = [
        f"engine load {engine:.1f} s; {load.finished} groups answered, none lost",
        "",
        "| fault | quarantined after, s | serving again after, s | beyond an engine load, s |",
        "|---|---|---|---|",
    ]
    for fault in dict.fromkeys(outage.fault for outage in outages):
        mine = [outage for outage in outages if outage.fault == fault]
        out = statistics.median(outage.quarantined for outage in mine)
        back = statistics.median(outage.serving for outage in mine)
        lines.append(f"| {fault} | {out:.1f} | {back:.1f} | {back - engine:+.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default=EMBEDDED_NAME)
    add("--rounds", type=int, default=1)
    add("--faults", nargs="*", default=list(FAULTS), choices=FAULTS)
    add("--groups", type=int, default=4, help="of 4 answers that are always on their way")
    add("--tokens", type=int, default=64, help="of an answer")
    options = parser.parse_args()
    model = resolve_model_path(options.model)
    settings = ReplicaSettings(model, dtype="bfloat16", max_length=256, max_sequences=16, eager=True, threads=1)
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    try:
        both = [started(settings) for _ in range(2)]
        replicas = [replica for replica, _ in both]
        router = start_router(replicas)
        ray.get(router.start.remote(_DEADLINE), timeout=_DEADLINE)
        rank: Any = ray.remote(Rank).options(num_cpus=1).remote(model, 1, lora=False)
        publisher = WeightPublisher([rank], replicas, WeightSettings(f"bench-{os.getpid()}"), router=router)
        publisher.publish(1)
        load = Load(router, options.groups, options.tokens)
        outages = []
        for number in range(options.rounds * len(options.faults)):
            _until(lambda: load.finished >= options.groups, load, "the first answers")
            index = number % 2
            outages.append(suffer(options.faults[number % len(options.faults)], replicas[index], router, load, index))
        load.drain()
        print(report(outages, [seconds for _, seconds in both], load))
        publisher.close()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
