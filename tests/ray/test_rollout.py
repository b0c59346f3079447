"""Router and gatherer on real Ray, with replicas that are scripted or draw with transformers."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from actors.fleet import FleetPolicy, MemberView, State
from actors.gather import Gatherer
from actors.rollout import RouterLimits, start_router
from actors.rollout_hf import HfReplica
from actors.rollout_replica import CONTROL, Health, ReplicaSettings, start_replica
from actors.rollout_weights import Parcel
from raytune.errors import ReplicaLostError, RolloutError
from raytune.rewards.table import RewardTable
from raytune.stages.samples import Completion, Group, Prompt, Sampling, ScoredGroup, VersionSpan
from tests.helpers.tiny import tiny_model, tiny_model_folder

pytestmark = pytest.mark.usefixtures("ray_local")
POLICY = FleetPolicy(interval=0.2, deadline=1.0, misses=2)
LIMITS = RouterLimits(request=60.0, wait=30.0, build=60.0, refit=30.0)
DEADLINE = 60.0


class Scripted:
    """A replica without a model: it sleeps, and answers with its own process id as the only token."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._version, self._stale, self._built = seconds, 0, False, False

    async def generate(self, prompt: Prompt, sampling: Sampling, group_size: int) -> Group:
        if self._stale:
            raise ReplicaLostError("the replica missed a weight update")
        if len(prompt.ids) > 3:
            raise RolloutError("the prompt is too long")
        await asyncio.sleep(self._seconds)
        ids = np.array([os.getpid()], np.int32)
        span = VersionSpan(self._version, 0, 1)
        answer = Completion(ids, np.zeros(1, np.float32), np.ones(1, np.bool_), (span,), "stop")
        return Group(prompt, (answer,) * group_size, sampling, self._seconds)

    @ray.method(concurrency_group=CONTROL)
    async def build(self) -> Health:
        self._version, self._stale, self._built = 0, False, True
        return Health(0, False, False, 0)

    @ray.method(concurrency_group=CONTROL)
    async def health(self) -> Health:
        if not self._built:
            raise ReplicaLostError("no engine")
        return Health(self._version, self._stale, False, 0)

    @ray.method(concurrency_group=CONTROL)
    async def node(self) -> str:
        return "here"

    @ray.method(concurrency_group=CONTROL)
    async def pid(self) -> int:
        return os.getpid()

    @ray.method(concurrency_group=CONTROL)
    async def init_transfer(self, info: dict[str, Any]) -> None:
        assert info == {"entries": []}

    @ray.method(concurrency_group=CONTROL)
    async def receive(self, update: dict[str, Any], version: int) -> None:
        self._stale = update["path"] == "/broken"
        if self._stale:
            raise RolloutError("broken weights")
        self._version = version

    @ray.method(concurrency_group=CONTROL)
    async def freeze(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


def scripted(count: int, seconds: float = 0.05) -> list[Any]:
    groups: dict[str, Any] = {"concurrency_groups": {CONTROL: 4}}
    actor: Any = ray.remote(**groups)(Scripted)
    return [actor.options(num_cpus=0.1, max_restarts=-1, max_concurrency=100).remote(seconds) for _ in range(count)]


def prompts(count: int, first: int = 0) -> list[Prompt]:
    return [Prompt(first + i, i, np.array([1, 5], np.int32)) for i in range(count)]


def members(router: Any) -> list[MemberView]:
    return ray.get(router.members.remote(), timeout=DEADLINE)


def wait_until(what: str, test: Callable[[], bool], seconds: float = DEADLINE) -> float:
    started = time.monotonic()
    while not test():
        assert time.monotonic() - started < seconds, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.fixture
def routed() -> Iterator[Callable[..., tuple[Any, list[Any]]]]:
    """Starts a router over replicas and ends them all."""
    started: list[Any] = []

    def start(replicas: list[Any], **settings: Any) -> tuple[Any, list[Any]]:
        router = start_router(replicas, **{"policy": POLICY, "limits": LIMITS, **settings})
        started.extend([router, *replicas])
        ray.get(router.start.remote(DEADLINE), timeout=DEADLINE)
        return router, replicas

    yield start
    for actor in started:
        ray.kill(actor)


def generate(router: Any, some: list[Prompt], size: int = 2) -> list[Any]:
    return [router.generate.remote(prompt, Sampling(), size) for prompt in some]


def test_prompts_are_spread_and_groups_stay_together(routed: Any) -> None:
    router, replicas = routed(scripted(2))
    groups: list[Group] = ray.get(generate(router, prompts(20)), timeout=DEADLINE)
    assert [group.prompt.number for group in groups] == list(range(20))
    pids = ray.get([replica.pid.remote() for replica in replicas], timeout=DEADLINE)
    drawn = [{int(one.ids[0]) for one in group.completions} for group in groups]
    assert all(len(one) == 1 for one in drawn)
    assert [sum(one == {pid} for one in drawn) for pid in pids] == [10, 10]
    assert [view.served for view in members(router)] == [20, 20]


def test_a_killed_replica_s_prompts_are_answered_elsewhere_and_it_comes_back(routed: Any) -> None:
    router, replicas = routed(scripted(2, seconds=1.0))
    refs = generate(router, prompts(8))
    wait_until("work", lambda: all(view.load for view in members(router)))
    os.kill(ray.get(replicas[0].pid.remote(), timeout=DEADLINE), signal.SIGKILL)
    quarantined = wait_until("quarantine", lambda: members(router)[0].state is not State.HEALTHY)
    groups = ray.get(refs, timeout=DEADLINE)
    assert quarantined < 5
    assert sorted(group.prompt.number for group in groups) == list(range(8))
    survivor = ray.get(replicas[1].pid.remote(), timeout=DEADLINE)
    assert all(int(group.completions[0].ids[0]) == survivor for group in groups)
    wait_until("recovery", lambda: members(router)[0].state is State.HEALTHY)
    assert members(router)[0].restarts == 1


def test_a_frozen_process_is_noticed_by_its_heartbeat_alone(routed: Any) -> None:
    router, replicas = routed(scripted(2, seconds=1.0))
    refs = generate(router, prompts(4))
    wait_until("work", lambda: all(view.load for view in members(router)))
    replicas[0].freeze.remote()
    limit = POLICY.interval + POLICY.misses * POLICY.deadline
    gone = wait_until("quarantine", lambda: members(router)[0].state in (State.DEAD, State.RESTARTING))
    assert gone < limit + 2
    assert len(ray.get(refs, timeout=DEADLINE)) == 4
    wait_until("recovery", lambda: members(router)[0].state is State.HEALTHY)
    assert len(ray.get(generate(router, prompts(4)), timeout=DEADLINE)) == 4


def test_a_replica_that_missed_an_update_is_refitted_before_it_serves(routed: Any) -> None:
    router, replicas = routed(scripted(2))
    good = {"kind": "flat", "path": "/good", "version": 3}
    ray.get(replicas[0].receive.remote(good, 3), timeout=DEADLINE)
    with pytest.raises(ray.exceptions.RayTaskError, match="broken"):
        ray.get(replicas[1].receive.remote({**good, "path": "/broken"}, 3), timeout=DEADLINE)
    parcel = Parcel(3, "flat", {"here": "/good"}, {"entries": []})
    ray.get(router.published.remote(parcel, 3, [0]), timeout=DEADLINE)
    assert members(router)[0].state is State.HEALTHY
    groups = ray.get(generate(router, prompts(10)), timeout=DEADLINE)
    assert {span.version for group in groups for one in group.completions for span in one.versions} == {3}
    wait_until("refit", lambda: members(router)[1].state is State.HEALTHY)
    assert members(router)[1].version == 3


def test_a_replica_that_died_comes_back_with_the_newest_weights(routed: Any) -> None:
    router, replicas = routed(scripted(1))
    ray.get(replicas[0].receive.remote({"path": "/good"}, 5), timeout=DEADLINE)
    ray.get(router.published.remote(Parcel(5, "flat", {"": "/good"}, {"entries": []}), 5, [0]), timeout=DEADLINE)
    ray.kill(replicas[0], no_restart=False)
    group = ray.get(generate(router, prompts(1)), timeout=DEADLINE)[0]
    assert group.completions[0].oldest == 5


def test_what_no_replica_could_mend_is_told_at_once(routed: Any) -> None:
    router, _ = routed(scripted(2))
    long = Prompt(0, 0, np.arange(9, dtype=np.int32))
    with pytest.raises(ray.exceptions.RayTaskError, match="too long"):
        ray.get(router.generate.remote(long, Sampling(), 2), timeout=DEADLINE)
    assert all(view.state is State.HEALTHY for view in members(router))


@ray.remote(num_cpus=0)
def count_tokens(group: Group) -> ScoredGroup:
    """Stands for a reward actor: an answer's reward is its length."""
    lengths = tuple(len(one.ids) for one in group.completions)
    return ScoredGroup(
        number=group.prompt.number,
        row=group.prompt.row,
        table=RewardTable(("length",), (1.0,), (tuple(float(length) for length in lengths),)),
        rewards=tuple(float(length) for length in lengths),
        lengths=lengths,
        prompt_length=len(group.prompt.ids),
        oldest=tuple(one.oldest for one in group.completions),
        finishes=tuple(one.finish for one in group.completions),
        payload=None,
        rollout_seconds=group.seconds,
        reward_seconds=0.0,
    )


class Counting:
    """The reward pool of these tests."""

    def submit(self, group: Any) -> Any:
        return count_tokens.remote(group)


def gather_all(gatherer: Gatherer) -> list[ScoredGroup]:
    found: list[ScoredGroup] = []
    while gatherer.pending():
        found += gatherer.wait(DEADLINE)
    return found


def test_the_gatherer_hands_out_scored_groups_with_the_way_to_their_tokens(routed: Any) -> None:
    router, _ = routed(scripted(2))
    gatherer = Gatherer(router, Counting())
    gatherer.submit(prompts(6), Sampling(), 3)
    assert gatherer.pending() == 6
    found = gather_all(gatherer)
    assert sorted(one.number for one in found) == list(range(6))
    assert found[0].rewards == (1.0, 1.0, 1.0)
    payload: Group = ray.get(found[0].payload, timeout=DEADLINE)
    assert payload.prompt.number == found[0].number
    with pytest.raises(RolloutError, match="nothing to wait for"):
        gatherer.wait(1.0)


def test_a_wait_that_is_too_long_says_what_it_waited_for(routed: Any) -> None:
    router, _ = routed(scripted(1, seconds=30.0))
    gatherer = Gatherer(router, Counting())
    gatherer.submit(prompts(2, first=7), Sampling(), 2)
    said = r"within 0.5 s; 2 are pending, 0 of them drawn .* \(prompts 7, 8\)"
    with pytest.raises(RolloutError, match=said):
        gatherer.wait(0.5)


def test_prompts_of_a_dead_router_are_asked_for_again(routed: Any) -> None:
    router, _ = routed(scripted(2, seconds=1.0))
    gatherer = Gatherer(router, Counting())
    gatherer.submit(prompts(6), Sampling(), 2)
    wait_until("work", lambda: all(view.load for view in members(router)))
    ray.kill(router, no_restart=False)
    assert sorted(one.number for one in gather_all(gatherer)) == list(range(6))


def test_a_prompt_that_cannot_be_answered_does_not_lose_the_others(routed: Any) -> None:
    router, _ = routed(scripted(2))
    gatherer = Gatherer(router, Counting())
    gatherer.submit([replace(prompts(1)[0], number=9, ids=np.arange(9, dtype=np.int32))], Sampling(), 2)
    gatherer.submit(prompts(3), Sampling(), 2)
    found, refused = [], []
    while gatherer.pending():
        try:
            found += gatherer.wait(DEADLINE)
        except RolloutError as error:
            refused.append(str(error))
    assert sorted(one.number for one in found) == [0, 1, 2]
    assert refused == ["the prompt is too long."]


def hf(folder: Path, **settings: Any) -> Any:
    return start_replica(HfReplica, ReplicaSettings(str(folder), dtype="float32", max_length=128, **settings), cpus=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


def forward(model: Any, group: Group, place: int) -> np.ndarray[Any, Any]:
    """Log-probs of an answer's tokens by one pass over prompt and answer."""
    answer = group.completions[place].ids.tolist()
    ids = torch.tensor([[*group.prompt.ids.tolist(), *answer]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(group.prompt.ids) - 1 : -1].log_softmax(-1)
    return logprobs[range(len(answer)), answer].numpy()


def likeliest(model: Any, group: Group) -> list[int]:
    """What transformers' own greedy search says to a group's prompt, in 12 tokens."""
    ids = torch.tensor([group.prompt.ids.tolist()])
    free = GenerationConfig(do_sample=False, min_new_tokens=12, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=free)[0, ids.shape[1] :].tolist()


def test_transformers_replicas_draw_by_seed_and_take_weights(routed: Any, folder: Path, tmp_path: Path) -> None:
    router, replicas = routed([hf(folder), hf(folder)])
    sampling = Sampling(max_new_tokens=12, seed=5, greedy_baseline=True)
    one, two = (ray.get(replica.generate.remote(prompts(3)[2], sampling, 4), timeout=DEADLINE) for replica in replicas)
    assert [a.ids.tolist() for a in one.completions] == [b.ids.tolist() for b in two.completions]
    model = AutoModelForCausalLM.from_pretrained(folder)
    for place in range(4):
        np.testing.assert_allclose(one.completions[place].logprobs, forward(model, one, place), atol=1e-4)
    assert likeliest(model, one) == one.baseline.ids.tolist() == two.baseline.ids.tolist()
    plain = ray.get(replicas[0].generate.remote(prompts(3)[2], replace(sampling, greedy_baseline=False), 4))
    assert [a.ids.tolist() for a in one.completions] == [b.ids.tolist() for b in plain.completions]
    other = tiny_model(seed=8)
    save_file({name: value.contiguous() for name, value in other.state_dict().items()}, tmp_path / "w.safetensors")
    update = {"kind": "safetensors", "path": str(tmp_path / "w.safetensors"), "version": 1}
    ray.get([replica.receive.remote(update, 1) for replica in replicas], timeout=DEADLINE)
    ray.get(router.published.remote(Parcel(1, "safetensors", {"": update["path"]}), 1, [0, 1]), timeout=DEADLINE)
    group = ray.get(router.generate.remote(prompts(1)[0], sampling, 4), timeout=DEADLINE)
    assert {one.versions for one in group.completions} == {(VersionSpan(1, 0, 12),)}
    np.testing.assert_allclose(group.completions[1].logprobs, forward(other, group, 1), atol=1e-4)
    assert (group.baseline.ids.tolist(), group.baseline.versions) == (likeliest(other, group), (VersionSpan(1, 0, 12),))
    members = ray.get(router.members.remote(), timeout=DEADLINE)
    assert (sum(one.load for one in members), sum(one.served for one in members)) == (0, 4 + 1)


def test_weights_that_do_not_fit_make_a_replica_stale(routed: Any, folder: Path, tmp_path: Path) -> None:
    _, (replica,) = routed([hf(folder)], policy=FleetPolicy(interval=60.0, deadline=60.0))
    save_file({"model.norm.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    update = {"kind": "safetensors", "path": str(tmp_path / "w.safetensors"), "version": 1}
    with pytest.raises(ray.exceptions.RayTaskError, match=r"no parameter model\.norm\.weight of shape"):
        ray.get(replica.receive.remote(update, 1), timeout=DEADLINE)
    assert ray.get(replica.health.remote(), timeout=DEADLINE) == Health(0, True, False, 0)
    with pytest.raises(ray.exceptions.RayTaskError, match="missed a weight update"):
        ray.get(replica.generate.remote(prompts(1)[0], Sampling(), 2), timeout=DEADLINE)


def test_an_environment_talks_with_a_transformers_replica(routed: Any, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "nudge.py"
    file.write_text(
        "from raytune.stages.environment import Reply\n"
        "class Nudge:\n"
        "    async def reset(self, prompt):\n"
        "        self.turns = 0\n"
        "    async def step(self, text, ids):\n"
        "        self.turns += 1\n"
        "        return Reply('go on', done=self.turns == 3)\n"
    )
    router, _ = routed([hf(folder, environment=f"{file}:Nudge")])
    # Half of the alphabet ends a turn, so that there are several.
    sampling = Sampling(max_new_tokens=90, stop_ids=tuple(range(0, 259, 4)), seed=3, greedy_baseline=True)
    group: Group = ray.get(router.generate.remote(prompts(1)[0], sampling, 4), timeout=DEADLINE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert "environment" in {one.finish for one in group.completions}
    for place, answer in enumerate(group.completions):
        expected = forward(model, group, place)
        np.testing.assert_allclose(answer.logprobs[answer.mask], expected[answer.mask], atol=1e-4)
        assert not answer.logprobs[~answer.mask].any()
        if answer.finish == "environment":
            assert (~answer.mask).sum() == 3 * len("go on")
    greedy = group.baseline
    assert greedy is not None
    ids = torch.tensor([[*group.prompt.ids.tolist(), *greedy.ids.tolist()]])
    with torch.no_grad():
        best = model(ids).logits[0, len(group.prompt.ids) - 1 : -1].argmax(-1).numpy()
    assert (greedy.ids == best)[greedy.mask].all()
