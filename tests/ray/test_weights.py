"""Weight sync between processes: who has which version when replicas, receivers and ranks die on the way."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import torch

from actors.fleet import MemberView, State
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from actors.weights_receiver import WeightReceiver
from actors.weights_sender import WeightSender
from raytune.errors import PolicyLostError, RaytuneError, RolloutError
from raytune.models.published import Published
from raytune.models.updates import UpdateReader
from tests.helpers.tiny import tiny_model
from tests.helpers.weights import TinyRank

DEADLINE = 60


class Replica:
    """Loads what it is told of into a plain model. `behave` says what goes wrong, once."""

    def __init__(self) -> None:
        self.model: Any = tiny_model(seed=99)
        self.loaded: list[int] = []
        self.behaviour = "fine"
        self.entries: list[Any] = []

    async def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def reset(self) -> None:
        self.loaded, self.behaviour = [], "fine"

    async def behave(self, how: str) -> None:
        self.behaviour = how

    async def init_transfer(self, info: dict[str, Any]) -> None:
        if self.behaviour == "refuse":
            raise RolloutError("model.norm.weight is missing")
        self.entries = info["entries"]

    async def receive(self, update: dict[str, Any], version: int) -> None:
        how, self.behaviour = self.behaviour, "fine"
        match how:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise RolloutError("no memory left")
            case "hang":
                time.sleep(3600)
        reader = UpdateReader()
        reader.verify(update, version, self.entries)
        self.model.load_state_dict(dict(reader.tensors(update)))
        self.loaded.append(version)

    async def add_adapter(self, path: str, version: int) -> None:
        assert Path(path, "adapter_config.json").is_file()
        self.loaded.append(version)

    async def seen(self) -> tuple[list[int], dict[str, torch.Tensor]]:
        return self.loaded, self.model.state_dict()


class Router:
    """Remembers what the publisher tells it; refits by what it was given."""

    def __init__(self, size: int) -> None:
        self.states = [State.HEALTHY] * size
        self.told: list[tuple[int, list[int]]] = []
        self.shipment: Any = None

    async def members(self) -> list[MemberView]:
        return [MemberView(i, state, 0, 0, 0, 0, "") for i, state in enumerate(self.states)]

    async def set_state(self, index: int, state: State) -> None:
        self.states[index] = state

    async def published(self, shipment: Any, version: int, received: list[int]) -> None:
        self.shipment = shipment
        self.told.append((version, received))

    async def refit(self, replica: Any) -> int:
        return await self.shipment.refit(replica)

    async def reset(self) -> None:
        self.states, self.told = [State.HEALTHY] * len(self.states), []

    async def log(self) -> list[tuple[int, list[int]]]:
        return self.told


@dataclass
class Run:
    rank: Any
    replicas: list[Any]
    publisher: WeightPublisher
    router: Any
    actors: list[Any] = field(default_factory=list)

    def publish(self, seed: int, version: int) -> dict[str, float]:
        ray.get(self.rank.set_seed.remote(seed), timeout=DEADLINE)
        return dict(self.publisher.publish(version))

    def has(self, index: int, seed: int) -> bool:
        _, weights = ray.get(self.replicas[index].seen.remote(), timeout=DEADLINE)
        return all(torch.equal(value, weights[name]) for name, value in tiny_model(seed=seed).state_dict().items())

    def told(self) -> list[tuple[int, list[int]]]:
        return ray.get(self.router.log.remote(), timeout=DEADLINE)


def start_replica(**options: Any) -> Any:
    return ray.remote(Replica).options(num_cpus=0, max_restarts=-1, **options).remote()


class Crew(NamedTuple):
    """Actors that all tests of this file share: each start costs seconds."""

    rank: Any
    replicas: list[Any]
    router: Any


@pytest.fixture(scope="module")
def crew(ray_local: None) -> Iterator[Crew]:
    rank: Any = ray.remote(TinyRank).options(num_cpus=0).remote()
    router: Any = ray.remote(Router).options(num_cpus=0).remote(2)
    made = Crew(rank, [start_replica(), start_replica()], router)
    yield made
    for actor in [rank, router, *made.replicas]:
        ray.kill(actor)


@pytest.fixture
def run(crew: Crew, tmp_path: Path) -> Iterator[Run]:
    settings = WeightSettings("test", dtype="float32", folder=tmp_path, deadline=8.0)
    ray.get([crew.router.reset.remote(), *(one.reset.remote() for one in crew.replicas)], timeout=DEADLINE)
    publisher = WeightPublisher([crew.rank], crew.replicas, settings, router=crew.router)
    yield Run(crew.rank, crew.replicas, publisher, crew.router)
    publisher.close()
    assert list(tmp_path.iterdir()) == []


def test_every_replica_has_every_version(run: Run) -> None:
    for version, seed in enumerate((1, 2, 3), start=1):
        seconds = run.publish(seed, version)
        assert run.has(0, seed)
        assert run.has(1, seed)
        assert seconds["sync"] == pytest.approx(seconds["publish"] + seconds["load"])
        assert seconds["write"] <= seconds["publish"]
    assert run.told() == [(1, [0, 1]), (2, [0, 1]), (3, [0, 1])]


def until_up(replica: Any) -> None:
    """Wait for the process that Ray starts instead of a killed one."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            ray.get(replica.node.remote(), timeout=DEADLINE)
            return
        except ray.exceptions.ActorUnavailableError:
            time.sleep(0.05)
    raise AssertionError("the replica did not come back")


@pytest.mark.parametrize("how", ["die", "fail", "hang"])
def test_a_replica_that_fails_is_stale_and_refitted_while_the_other_serves(run: Run, how: str) -> None:
    run.publish(1, version=1)
    ray.get(run.replicas[0].behave.remote(how), timeout=DEADLINE)
    run.publish(2, version=2)
    assert run.told()[-1] == (2, [1])
    assert run.has(1, 2)
    if how == "hang":
        ray.kill(run.replicas[0], no_restart=False)
    until_up(run.replicas[0])
    assert ray.get(run.router.refit.remote(run.replicas[0]), timeout=DEADLINE) == 2
    assert run.has(0, 2)
    run.publish(3, version=3)
    assert run.told()[-1] == (3, [0, 1])


def test_a_replica_that_the_router_holds_for_dead_is_not_waited_for(run: Run) -> None:
    ray.get(run.router.set_state.remote(0, State.RESTARTING), timeout=DEADLINE)
    run.publish(1, version=1)
    assert run.told() == [(1, [1])]
    assert ray.get(run.replicas[0].seen.remote(), timeout=DEADLINE)[0] == []


def test_a_late_refit_gets_the_newest_version(run: Run) -> None:
    for version in (1, 2, 3):
        run.publish(version, version)
    late = start_replica()
    assert ray.get(run.router.refit.remote(late), timeout=DEADLINE) == 3
    assert ray.get(late.seen.remote(), timeout=DEADLINE)[0] == [3]
    ray.kill(late)


def test_another_model_is_refused_at_the_first_version(run: Run) -> None:
    for replica in run.replicas:
        ray.get(replica.behave.remote("refuse"), timeout=DEADLINE)
    with pytest.raises(
        RolloutError, match=r"no replica can take the trainer's weights: .*model\.norm\.weight is missing"
    ):
        run.publish(1, version=1)


def test_a_dead_rank_is_named_and_what_it_published_stays(run: Run, tmp_path: Path) -> None:
    settings = WeightSettings("dying", dtype="float32", folder=tmp_path, deadline=8.0)
    rank: Any = ray.remote(TinyRank).options(num_cpus=0).remote()
    publisher = WeightPublisher([rank], run.replicas, settings, router=run.router)
    publisher.publish(1)
    ray.kill(rank)
    started = time.monotonic()
    with pytest.raises(PolicyLostError, match="rank 0 stopped during 'publish weights 2': its process died"):
        publisher.publish(2)
    assert time.monotonic() - started < 5
    assert ray.get(run.router.refit.remote(run.replicas[0]), timeout=DEADLINE) == 1
    publisher.close()


def test_without_a_router_the_publisher_refits(run: Run, tmp_path: Path) -> None:
    settings = WeightSettings("alone", dtype="float32", folder=tmp_path, deadline=8.0)
    replica = run.replicas[0]
    publisher = WeightPublisher([run.rank], [replica], settings)
    with pytest.raises(RolloutError, match="no weights have been published yet"):
        publisher.refit(0)
    publisher.publish(1)
    ray.get(replica.behave.remote("fail"), timeout=DEADLINE)
    with pytest.raises(RolloutError, match=r"no replica took weights 2: .*no memory left"):
        publisher.publish(2)
    assert publisher.refit(0) == 2
    publisher.close()


def test_adapters_alone_keep_a_few_versions(run: Run, tmp_path: Path) -> None:
    settings = WeightSettings("lora", folder=tmp_path, deadline=8.0, kept_adapters=2)
    rank: Any = ray.remote(TinyRank).options(num_cpus=0).remote(lora=True)
    replica = run.replicas[0]
    publisher = WeightPublisher([rank], [replica], settings)
    for version in (1, 2, 3, 3):
        publisher.publish(version)
    assert ray.get(replica.seen.remote(), timeout=DEADLINE)[0] == [1, 2, 3, 3]
    (folder,) = tmp_path.glob("raytune-lora-*")
    assert len(list(folder.glob("adapter-*"))) == 2
    assert publisher.refit(0) == 3
    publisher.close()
    ray.kill(rank)


class Away(NamedTuple):
    """Rank 0's part in this process, and one receiver that stands for another node."""

    sender: WeightSender
    receiver: Any
    settings: WeightSettings


@pytest.fixture
def away(ray_local: None, tmp_path: Path) -> Iterator[Away]:
    settings = WeightSettings("here", dtype="float32", folder=tmp_path, bucket_bytes=40_000, deadline=60.0)
    there = WeightSettings("there", dtype="float32", folder=tmp_path, bucket_bytes=40_000, deadline=8.0)
    receiver: Any = ray.remote(WeightReceiver).options(num_cpus=0).remote(there)
    yield Away(WeightSender(tiny_model(seed=4), settings, rank=0), receiver, settings)
    ray.kill(receiver)


def entries() -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.name, one.dtype, one.shape) for one in Published(tiny_model()).entries]


def test_buckets_through_the_object_store_are_the_same_weights(away: Away) -> None:
    for version in (1, 2, 3):
        sent = away.sender.publish(version, {"other": away.receiver})
        assert sent is not None
        assert sent.missed == {}
        update = {"kind": "flat", "path": sent.paths["other"], "version": version}
        reader = UpdateReader()
        reader.verify(update, version, entries())
        found = dict(reader.tensors(update))
        assert len(found) > 8
        assert all(torch.equal(value, found[name]) for name, value in tiny_model(seed=4).named_parameters())
        assert sent.seconds["send"] > 0
    assert Path(sent.paths["other"]).parent != Path(sent.paths[ray.get_runtime_context().get_node_id()]).parent


def test_a_dead_receiver_leaves_the_other_nodes_alone(away: Away) -> None:
    more = WeightSettings("third", dtype="float32", folder=away.settings.folder, bucket_bytes=40_000)
    third: Any = ray.remote(WeightReceiver).options(num_cpus=0).remote(more)
    away.sender.publish(1, {"other": away.receiver, "third": third})
    ray.kill(away.receiver)
    sent = away.sender.publish(2, {"other": away.receiver, "third": third})
    assert sent is not None
    assert "third" in sent.paths
    assert "other" not in sent.paths
    assert "could not begin" in sent.missed["other"]
    ray.kill(third)


def test_a_node_that_comes_later_is_sent_the_newest_version(away: Away) -> None:
    with pytest.raises(RolloutError, match="no weights have been published yet"):
        away.sender.resend({"other": away.receiver})
    away.sender.publish(5, {})
    sent = away.sender.resend({"other": away.receiver})
    assert sent.version == 5
    update = {"kind": "flat", "path": sent.paths["other"], "version": 5}
    UpdateReader().verify(update, 5, entries())


def test_an_adapter_is_wanted_where_there_is_none(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(RaytuneError, match="the adapter cannot be sent alone: there is no adapter"):
        WeightSender(tiny_model(), WeightSettings("x", kind="adapter", folder=tmp_path), rank=0)
