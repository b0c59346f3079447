"""What a router is told of turns, and what comes of one that does not listen."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors import sleepers
from actors.sleepers import ReplicaSleepers
from raytune.errors import ReplicaLostError, RolloutError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the router was told; references are the values themselves here."""
    monkeypatch.setattr(sleepers.ray, "get", lambda ref, timeout: ref() if callable(ref) else ref)
    monkeypatch.setattr(sleepers.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    return []


def answer(failure: Exception | None) -> Any:
    def fail() -> None:
        assert failure is not None
        raise failure

    return None if failure is None else fail


def made(
    told: list[bool], *, gpus: bool, failure: Exception | None = None, replicas: tuple[Exception | None, ...] = (None,)
) -> ReplicaSleepers:
    """Args: failure: of the router. replicas: what each of them fails with."""

    def rest(resting: bool) -> Any:
        told.append(resting)
        return answer(failure)

    def replica(failure: Exception | None) -> Any:
        call = SimpleNamespace(remote=lambda *_: answer(failure))
        return SimpleNamespace(sleep=call, wake_up=call)

    router = SimpleNamespace(rest=SimpleNamespace(remote=rest))
    seconds = {"deadline": 9.0, "router_deadline": 3.0}
    return ReplicaSleepers([replica(one) for one in replicas], router, level=2, gpus=gpus, **seconds)


def test_a_router_that_was_started_anew_is_told_whose_turn_it_is(told: list[bool]) -> None:
    replicas = made(told, gpus=True)
    replicas.tell_router()
    replicas.sleep()
    replicas.tell_router()
    replicas.wake("weights")
    replicas.tell_router()
    replicas.wake("kv_cache")
    replicas.tell_router()
    # It rests from the moment they sleep until their caches are back.
    assert told == [False, True, True, True, False, False]


def test_on_a_cpu_nobody_waits_for_memory(told: list[bool]) -> None:
    replicas = made(told, gpus=False)
    replicas.sleep()
    replicas.tell_router()
    assert told == []


@pytest.mark.parametrize(
    ("failure", "what"),
    [(GetTimeoutError("late"), r"did not answer within 3 s"), (RayActorError(), r"the rollout router died")],
)
def test_a_router_that_does_not_listen_is_an_error_of_ours(told: list[bool], failure: Exception, what: str) -> None:
    with pytest.raises(RolloutError, match=what):
        made(told, gpus=True, failure=failure).sleep()


BROKEN = RayTaskError("sleep", "", RolloutError("no memory"))
UNBUILT = RayTaskError("sleep", "", ReplicaLostError("the replica has no model yet"))


@pytest.mark.parametrize("lost", [RayActorError(), UNBUILT])
def test_a_lost_replica_is_left_to_the_router_even_if_it_is_the_only_one(told: list[bool], lost: Exception) -> None:
    for replicas in ((lost,), (lost, BROKEN), (lost, None)):
        one = made(told, gpus=True, replicas=replicas)
        one.sleep()
        one.wake("weights")
        one.wake("kv_cache")
    assert told == [True, False] * 3


@pytest.mark.parametrize(
    ("failure", "why"),
    [(GetTimeoutError("late"), "not within 9 s; not within 9 s"), (BROKEN, "no memory.; no memory.")],
)
def test_replicas_that_live_and_do_not_give_way_end_the_run(told: list[bool], failure: Exception, why: str) -> None:
    made(told, gpus=True, replicas=(failure, None)).sleep()
    with pytest.raises(RolloutError, match=rf"no replica could sleep \({why}\)"):
        made(told, gpus=True, replicas=(failure, failure)).sleep()
