"""Which models a replica on transformers can be sent weights for, and what it does without a model."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from actors import stacks
from actors.rollout_hf import HfReplica, misfits
from actors.rollout_replica import ReplicaSettings
from raytune.errors import ReplicaLostError, RolloutError
from raytune.models.published import Published
from tests.helpers.tiny import tiny_experts, tiny_model


def entries_of(model: Any) -> list[tuple[str, str, list[int]]]:
    """What its trainer says will come."""
    return [(entry.name, entry.dtype, list(entry.shape)) for entry in Published(model).entries]


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_takes_what_its_trainer_sends(tied: bool) -> None:
    assert misfits(entries_of(tiny_model(tied=tied)), tiny_model(seed=1, tied=tied)) == ([], [])


def test_what_would_not_come_is_named() -> None:
    first, *others = entries_of(tiny_model())
    assert misfits(others, tiny_model()) == ([], [first[0]])


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(stacks, "register", lambda what: None)
    made: Any = HfReplica(ReplicaSettings("m"))
    yield made
    asyncio.run(made.shutdown())


def test_experts_that_are_joined_in_memory_are_refused_with_a_remedy(replica: Any) -> None:
    replica._model = tiny_experts()
    with pytest.raises(RolloutError, match=r"MixtralForCausalLM.*rollout_backend: vllm"):
        asyncio.run(replica.init_transfer({"entries": entries_of(replica._model)}))
    assert replica._entries == []


def test_a_vocabulary_that_grew_is_refused_with_its_own_remedy(replica: Any) -> None:
    replica._model = tiny_model()
    grown = [(name, kind, [shape[0] + 8, *shape[1:]]) for name, kind, shape in entries_of(replica._model)][:1]
    with pytest.raises(RolloutError, match=r"in the trainer and .* in the replica's model.*Save the resized model"):
        asyncio.run(replica.init_transfer({"entries": grown}))


class Immovable:
    def to(self, device: str) -> None:
        raise RuntimeError(f"no memory on {device}")


def test_a_model_that_cannot_come_back_is_given_up_and_who_draws_with_it_goes_elsewhere(replica: Any) -> None:
    replica._model, replica._device = Immovable(), "cuda"
    with pytest.raises(RolloutError, match="the model cannot be moved to cuda: RuntimeError: no memory on cuda"):
        asyncio.run(replica.wake_up())
    for asked in (replica.health, replica.sleep):
        with pytest.raises(ReplicaLostError, match="has no model"):
            asyncio.run(asked())
    with pytest.raises(ReplicaLostError, match="has no model"):
        replica._between()


def test_who_waits_for_a_paused_replica_is_let_go_when_its_model_is_lost(replica: Any) -> None:
    replica._model = tiny_model()
    asyncio.run(replica.pause())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(replica._between)
        assert not wait([waiting], timeout=0.5).done
        replica._model = None
        with pytest.raises(ReplicaLostError, match="has no model"):
            waiting.result(timeout=30)
