"""What a replica asks of vLLM's engine."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors import rollout_vllm, stacks
from actors.rollout_replica import ReplicaSettings
from actors.rollout_vllm import VllmReplica, engine_arguments
from raytune.errors import ReplicaLostError, RolloutError

GIB = 2**30


def test_workers_are_processes_that_share_the_cache():
    alone = ReplicaSettings("m", cache_gib=3.0)
    assert not {"tensor_parallel_size", "distributed_executor_backend"} & engine_arguments(alone, gpu=True).keys()
    assert engine_arguments(alone, gpu=False)["kv_cache_memory_bytes"] == 3 * GIB
    shared = ReplicaSettings("m", cache_gib=3.0, workers=4)
    for gpu in (False, True):
        given = engine_arguments(shared, gpu=gpu)
        assert (given["tensor_parallel_size"], given["distributed_executor_backend"]) == (4, "mp")
    assert engine_arguments(shared, gpu=False)["kv_cache_memory_bytes"] == 0.75 * GIB


@pytest.mark.parametrize(
    ("key", "gpu", "eager"), [(None, False, True), (None, True, False), (False, False, False), (True, True, True)]
)
def test_a_model_is_compiled_on_gpus_and_where_it_is_asked_for(key: bool | None, gpu: bool, eager: bool) -> None:
    assert engine_arguments(ReplicaSettings("m", eager=key), gpu=gpu)["enforce_eager"] is eager


@pytest.mark.parametrize(("verb", "words"), [("sleep", "sleep"), ("wake_up", "wake up")])
def test_an_engine_that_does_not_sleep_or_wake_is_ended(monkeypatch: pytest.MonkeyPatch, verb: str, words: str) -> None:
    """Half awake it would answer heartbeats and draw nothing."""
    monkeypatch.setattr(stacks, "register", lambda what: None)
    monkeypatch.setattr(rollout_vllm, "engine_processes", list)
    ended: list[float] = []

    async def fail(*args: object, **keys: object) -> bool:
        raise ValueError("CUDA out of memory")

    replica: Any = VllmReplica(ReplicaSettings("m"))
    replica._engine = SimpleNamespace(**{verb: fail}, shutdown=lambda timeout: ended.append(timeout))
    replica._weights = SimpleNamespace(asleep=False)
    with pytest.raises(RolloutError, match=f"could not {words}: ValueError: CUDA out of memory"):
        asyncio.run(getattr(replica, verb)())
    assert len(ended) == 1
    with pytest.raises(ReplicaLostError, match="has no engine yet"):
        asyncio.run(replica.health())
