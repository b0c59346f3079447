"""Real vLLM engines behind the router: log-probs, seeds, versions, and what happens when a core dies or freezes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import ray
import torch

from actors.fleet import FleetPolicy, MemberView, State
from actors.rollout import RouterLimits, start_router
from actors.rollout_replica import Health, ReplicaSettings, start_replica
from actors.rollout_vllm import VllmReplica, vllm_env
from actors.sleepers import ReplicaSleepers
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from raytune.errors import ReplicaLostError, RolloutError
from raytune.models.adapter_file import gather_adapter, write_adapter
from raytune.stages.samples import Group, Prompt, Sampling
from tests.helpers.tiny import tiny_model, tiny_model_folder, tiny_tokenizer
from tests.helpers.weights import ROOT, TinyRank, plugin_folder, with_lora

pytest.importorskip("vllm")
DEADLINE = 240.0
POLICY = FleetPolicy()


@dataclass
class Fleet:
    """A router over two replicas, the second one compiled, how long their engines took, and the model they have."""

    router: Any
    replicas: list[Any]
    engine_load: float
    model: Any

    def draw(self, number: int, sampling: Sampling, size: int = 4, replica: int | None = None) -> Group:
        prompt = Prompt(number, number, np.array([1, 40 + number, 41, 42], np.int32))
        target = self.router if replica is None else self.replicas[replica]
        return ray.get(target.generate.remote(prompt, sampling, size), timeout=DEADLINE)

    def members(self) -> list[MemberView]:
        return ray.get(self.router.members.remote(), timeout=DEADLINE)

    def until(self, what: str, test: Callable[[], bool]) -> float:
        started = time.monotonic()
        while not test():
            assert time.monotonic() - started < DEADLINE, f"{what} did not happen within {DEADLINE:g} s"
            time.sleep(0.05)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def start(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Starts a replica on the tiny model."""
    folder = tiny_model_folder(tmp_path_factory.mktemp("rollout") / "tiny")
    plugins = os.pathsep.join([str(ROOT), str(plugin_folder(folder.parent))])

    def start(**keys: Any) -> Any:
        settings = ReplicaSettings(
            str(folder), dtype="float32", max_length=256, max_sequences=16, cache_gib=0.25, **keys
        )
        return start_replica(VllmReplica, settings, env={**vllm_env(settings, gpu=False), "PYTHONPATH": plugins})

    return start


def end(replicas: list[Any]) -> None:
    ray.wait([replica.shutdown.remote() for replica in replicas], num_returns=len(replicas), timeout=20)
    for replica in replicas:
        ray.kill(replica)


@pytest.fixture(scope="module")
def fleet(start: Callable[..., Any]) -> Iterator[Fleet]:
    replicas = [start(), start(eager=False)]
    limits = RouterLimits(request=120.0, wait=120.0, build=DEADLINE)
    router = start_router(replicas, policy=POLICY, limits=limits)
    started = time.monotonic()
    ray.get(router.start.remote(DEADLINE), timeout=DEADLINE)
    yield Fleet(router, replicas, time.monotonic() - started, tiny_model())
    ray.kill(router)
    end(replicas)


@pytest.fixture(scope="module")
def shared(start: Callable[..., Any]) -> Iterator[Any]:
    """A replica whose two workers share the model, built for adapters too."""
    replica = start(workers=2, adapter_rank=8)
    ray.get(replica.build.remote(), timeout=DEADLINE)
    yield replica
    end([replica])


def forward(model: Any, group: Group, place: int, temperature: float) -> npt.NDArray[np.float32]:
    answer = group.completions[place].ids.tolist()
    with torch.no_grad():
        logits = model(torch.tensor([[*group.prompt.ids.tolist(), *answer]])).logits[0, len(group.prompt.ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(answer)), answer].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_transformers(fleet: Fleet, temperature: float) -> None:
    group = fleet.draw(0, Sampling(temperature=temperature, max_new_tokens=32, greedy_baseline=True))
    gaps = [
        np.abs(answer.logprobs - forward(fleet.model, group, place, temperature))
        for place, answer in enumerate(group.completions)
    ]
    assert np.mean(gaps) <= 1e-4
    assert all(answer.finish == "length" and answer.oldest == 0 for answer in group.drawn)
    assert group.baseline is not None
    prompt, greedy = group.prompt.ids.tolist(), group.baseline.ids.tolist()
    with torch.no_grad():
        best = fleet.model(torch.tensor([[*prompt, *greedy]])).logits[0, len(prompt) - 1 : -1].argmax(-1)
    assert greedy == best.tolist()


def test_answers_depend_on_their_seeds_alone(fleet: Fleet) -> None:
    sampling = Sampling(max_new_tokens=24, seed=7)
    groups = [fleet.draw(3, sampling, replica=replica) for replica in (0, 1)]
    first, second = ([one.ids.tolist() for one in group.completions] for group in groups)
    assert first == second
    beside = fleet.draw(3, replace(sampling, greedy_baseline=True))
    assert [one.ids.tolist() for one in beside.completions] == first
    assert len({tuple(ids) for ids in first}) == 4
    assert [one.ids.tolist() for one in fleet.draw(4, sampling).completions] != first


def test_engines_that_sleep_draw_on_once_they_have_weights_and_caches(fleet: Fleet) -> None:
    sleepers = ReplicaSleepers(fleet.replicas, fleet.router, level=1, gpus=False, deadline=60.0, router_deadline=60.0)
    sampling = Sampling(max_new_tokens=24, seed=9)
    before = fleet.draw(8, sampling)
    sleepers.sleep()
    asked = fleet.router.generate.remote(before.prompt, sampling, 4)
    sleepers.wake("weights")
    assert not ray.wait([asked], timeout=1.0)[0]
    sleepers.wake("kv_cache")
    after = ray.get(asked, timeout=DEADLINE)
    assert [one.ids.tolist() for one in after.completions] == [one.ids.tolist() for one in before.completions]


def test_answers_end_at_stop_tokens_and_stop_strings_which_they_contain(fleet: Fleet) -> None:
    free = fleet.draw(5, Sampling(max_new_tokens=24)).completions[0].ids.tolist()
    stopped = fleet.draw(5, Sampling(max_new_tokens=24, stop_ids=(free[3],))).completions[0]
    assert (stopped.ids.tolist(), stopped.finish) == (free[: free.index(free[3]) + 1], "stop")
    text = str(tiny_tokenizer().decode(free[6:8]))
    halted = fleet.draw(5, Sampling(max_new_tokens=24, stop=(text,))).completions[0]
    assert halted.finish == "stop"
    assert text in str(tiny_tokenizer().decode(halted.ids.tolist()[-4:]))


def test_a_replica_halts_and_goes_on(fleet: Fleet) -> None:
    replica = fleet.replicas[0]
    ray.get(replica.pause.remote(), timeout=DEADLINE)
    prompt = Prompt(0, 0, np.array([1, 5], np.int32))
    waiting = replica.generate.remote(prompt, Sampling(max_new_tokens=4), 2)
    assert not ray.wait([waiting], timeout=1.0)[0]
    assert ray.get(replica.health.remote(), timeout=DEADLINE) == Health(0, False, False, 1)
    ray.get(replica.resume.remote(), timeout=DEADLINE)
    assert len(ray.get(waiting, timeout=DEADLINE).completions) == 2


@pytest.mark.parametrize(("name", "number"), [("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)])
def test_prompts_of_a_lost_core_are_answered_elsewhere_and_it_comes_back(fleet: Fleet, name: str, number: int) -> None:
    restarts = fleet.members()[0].restarts
    prompts = [Prompt(i, i, np.array([1, 40 + i, 41], np.int32)) for i in range(8)]
    refs = [fleet.router.generate.remote(one, Sampling(max_new_tokens=200), 4) for one in prompts]
    fleet.until("work", lambda: fleet.members()[0].load > 0)
    for pid in ray.get(fleet.replicas[0].core_pids.remote(), timeout=DEADLINE):
        os.kill(pid, number)
    began = time.monotonic()
    fleet.until("quarantine", lambda: fleet.members()[0].state in (State.DEAD, State.RESTARTING))
    quarantined = time.monotonic() - began
    groups = ray.get(refs, timeout=DEADLINE)
    fleet.until("recovery", lambda: fleet.members()[0].state is State.HEALTHY)
    back = time.monotonic() - began
    print(f"{name}: quarantined after {quarantined:.1f} s, back after {back:.1f} s, load {fleet.engine_load:.1f} s")
    assert quarantined < 10
    assert [len(group.completions[0].ids) for group in groups] == [200] * 8
    assert fleet.members()[0].restarts == restarts + 1
    assert back < fleet.engine_load + 10
    assert len(fleet.draw(1, Sampling(max_new_tokens=4), replica=0).completions) == 4


def gap(model: Any, group: Group) -> float:
    pairs = zip(range(len(group.completions)), group.completions, strict=True)
    return float(np.mean([np.abs(one.logprobs - forward(model, group, place, 1.0)) for place, one in pairs]))


def test_workers_that_share_a_model_draw_as_one_does_before_and_after_updates(fleet: Fleet, shared: Any) -> None:
    """Two workers, each with a head, against the engine that has both, and against transformers."""
    rank: Any = ray.remote(TinyRank).remote(seed=5)
    sampling = Sampling(max_new_tokens=24, seed=11)
    whole = fleet.draw(6, sampling, replica=0)

    def draw() -> Group:
        return ray.get(shared.generate.remote(whole.prompt, sampling, 4), timeout=DEADLINE)

    def as_one(group: Group, version: int) -> None:
        for ours, one in zip(group.completions, whole.completions, strict=True):
            assert ours.ids.tolist() == one.ids.tolist()
            np.testing.assert_allclose(ours.logprobs, one.logprobs, atol=1e-4)
            assert {span.version for span in ours.versions} == {version}

    assert len(ray.get(shared.core_pids.remote(), timeout=DEADLINE)) == 3
    as_one(draw(), 0)
    publisher = WeightPublisher([rank], [shared], WeightSettings("shared-test", dtype="float32", kind="merged"))
    try:
        publisher.publish(1)
        assert gap(tiny_model(seed=5), draw()) <= 1e-4
        ray.get(rank.set_seed.remote(0), timeout=DEADLINE)
        publisher.publish(2)
        as_one(draw(), 2)
        assert ray.get(shared.health.remote(), timeout=DEADLINE) == Health(2, False, False, 0)
    finally:
        publisher.close()
        ray.kill(rank)


def test_a_lost_core_comes_back_with_the_newest_weights(fleet: Fleet) -> None:
    rank: Any = ray.remote(TinyRank).remote(seed=5)
    settings = WeightSettings("rollout-test", dtype="float32", kind="merged")
    publisher = WeightPublisher([rank], fleet.replicas, settings, router=fleet.router)
    try:
        publisher.publish(1)
        newest = tiny_model(seed=5)
        for replica in (0, 1):
            group = fleet.draw(2, Sampling(max_new_tokens=16), replica=replica)
            assert {one.versions[0].version for one in group.completions} == {1}
            assert gap(newest, group) <= 1e-4
        for pid in ray.get(fleet.replicas[1].core_pids.remote(), timeout=DEADLINE):
            os.kill(pid, signal.SIGKILL)
        fleet.until("quarantine", lambda: fleet.members()[1].state in (State.DEAD, State.RESTARTING))
        fleet.until("recovery", lambda: fleet.members()[1].state is State.HEALTHY)
        assert fleet.members()[1].version == 1
        assert gap(newest, fleet.draw(2, Sampling(max_new_tokens=16), replica=1)) <= 1e-4
    finally:
        publisher.close()
        ray.kill(rank)


def test_new_answers_take_the_newest_adapter_and_running_ones_keep_theirs(shared: Any, tmp_path: Path) -> None:
    models = {version: with_lora(tiny_model(), seed=version) for version in (3, 4)}
    for version, model in models.items():
        write_adapter(model, gather_adapter(model, keep=True), tmp_path / f"v{version}", dtype=None)
    prompt = Prompt(0, 0, np.array([1, 40, 41, 42], np.int32))
    ray.get(shared.add_adapter.remote(str(tmp_path / "v3"), 3), timeout=DEADLINE)
    running = shared.generate.remote(prompt, Sampling(max_new_tokens=240), 4)
    assert not ray.wait([running], timeout=0.3)[0]
    ray.get(shared.add_adapter.remote(str(tmp_path / "v4"), 4), timeout=DEADLINE)
    later = ray.get(shared.generate.remote(prompt, Sampling(max_new_tokens=16), 4), timeout=DEADLINE)
    for group, version in ((ray.get(running, timeout=DEADLINE), 3), (later, 4)):
        assert {span.version for one in group.completions for span in one.versions} == {version}
        assert gap(models[version], group) <= 1e-4
    assert ray.get(shared.version.remote(), timeout=DEADLINE) == 4


def test_an_engine_with_a_worker_that_failed_is_given_up(shared: Any) -> None:
    with pytest.raises(RolloutError, match="is missing"):
        ray.get(shared.init_transfer.remote({"entries": [["lm_head.weight", "float32", [3, 64]]]}), timeout=DEADLINE)
    with pytest.raises(ReplicaLostError, match="out of step"):
        ray.get(shared.health.remote(), timeout=DEADLINE)
