"""What the driver says of replicas that are away: the router's own log stays in its process."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from actors import weights
from actors.fleet import MemberView, State
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings


def view(state: State, restarts: int = 0, reason: str = "") -> MemberView:
    return MemberView(1, state, 4, 0, 0, restarts, reason)


def test_each_change_of_a_replica_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[MemberView] = []
    monkeypatch.setattr(WeightPublisher, "reopen", lambda self, ranks: None)
    monkeypatch.setattr(weights.ray, "get", lambda ref, timeout: [seen[-1]])
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    router: Any = SimpleNamespace(members=SimpleNamespace(remote=lambda: None))
    publisher = WeightPublisher([], [], WeightSettings("run"), router=router)
    for one, serves in (
        (view(State.HEALTHY), True),
        (view(State.DEAD, reason="the process died"), False),
        (view(State.DEAD, reason="the process died"), False),
        (view(State.STALE, restarts=1), False),
        (view(State.HEALTHY, restarts=1), True),
        (view(State.HEALTHY, restarts=1), True),
        (view(State.HEALTHY, restarts=2), True),
        (view(State.GONE, restarts=2, reason="4 restarts failed"), False),
    ):
        seen.append(one)
        assert publisher._serving() == ([1] if serves else [])
    assert caplog.messages == [
        "rollout replica 1 is dead: the process died",
        "rollout replica 1 serves again after restart 1",
        "rollout replica 1 serves again after restart 2",
        "rollout replica 1 is gone: 4 restarts failed",
    ]
