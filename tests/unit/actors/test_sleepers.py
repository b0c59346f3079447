"""What a router is told of turns, and what comes of one that does not listen."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from actors import sleepers
from actors.sleepers import ReplicaSleepers
from raytune.errors import RolloutError


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the router was told; references are the values themselves here."""
    monkeypatch.setattr(sleepers.ray, "get", lambda ref, timeout: ref() if callable(ref) else ref)
    monkeypatch.setattr(sleepers.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    return []


def made(told: list[bool], *, gpus: bool, failure: Exception | None = None) -> ReplicaSleepers:
    def rest(resting: bool) -> Any:
        told.append(resting)
        return None if failure is None else fail

    def fail() -> None:
        assert failure is not None
        raise failure

    quiet = SimpleNamespace(remote=lambda *_: None)
    router = SimpleNamespace(rest=SimpleNamespace(remote=rest))
    replica = SimpleNamespace(sleep=quiet, wake_up=quiet)
    return ReplicaSleepers([replica], router, level=2, gpus=gpus, deadline=9.0, router_deadline=3.0)


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
