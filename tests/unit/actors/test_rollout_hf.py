"""Which models a replica on transformers can be sent weights for."""

import asyncio
from typing import Any

import pytest

from actors import stacks
from actors.rollout_hf import HfReplica, misfits
from actors.rollout_replica import ReplicaSettings
from raytune.errors import RolloutError
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


def test_experts_that_are_joined_in_memory_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "register", lambda what: None)
    replica: Any = HfReplica(ReplicaSettings("m"))
    replica._model = tiny_experts()
    with pytest.raises(RolloutError, match=r"MixtralForCausalLM.*rollout_backend: vllm"):
        asyncio.run(replica.init_transfer({"entries": entries_of(replica._model)}))
    assert replica._entries == []
