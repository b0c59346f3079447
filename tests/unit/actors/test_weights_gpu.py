"""What surrounds the transfers between GPUs: which one, whose rank, what is said of the weights. No GPU is needed."""

import base64
import pickle
from typing import Any

import pytest
import torch

from actors.weights_gpu import Seat, _picklable, choose_backend, published_source
from raytune.models.published import Published
from tests.helpers.tiny import tiny_model


def seat(*gpus: str, node: str = "a") -> Seat:
    return Seat(node, frozenset(gpus))


@pytest.mark.parametrize(
    ("ranks", "replicas", "backend"),
    [
        ([seat()], [seat()], "raytune_flat"),
        ([seat("0")], [seat()], "raytune_flat"),
        ([seat("0"), seat("1")], [seat("0"), seat("1")], "ipc"),
        ([seat("0"), seat("1")], [seat("0", "1")], "ipc"),
        ([seat("0"), seat("1")], [seat("2"), seat("3", node="b")], "nccl"),
        ([seat("0"), seat("1")], [seat("1"), seat("2")], "raytune_flat"),
    ],
)
def test_the_situation_chooses(ranks: list[Seat], replicas: list[Seat], backend: str) -> None:
    assert choose_backend(ranks, replicas) == backend


def test_what_is_declared_is_what_comes() -> None:
    source = published_source(Published(tiny_model(tied=True), dtype=torch.bfloat16), torch.device("cpu"))
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    for _ in range(2):
        assert [(name, value.dtype, tuple(value.shape)) for name, value in source] == declared
    assert {dtype for _, dtype, _ in declared} == {torch.bfloat16}


def test_memory_handles_travel_pickled() -> None:
    update: dict[str, Any] = {"names": ["a"], "ipc_handles": [{"GPU-1": (torch.Tensor, 3)}], "tensor_sizes": None}
    plain = _picklable(update)
    assert set(plain) == {"names", "ipc_handles_pickled"}
    assert pickle.loads(base64.b64decode(plain["ipc_handles_pickled"])) == update["ipc_handles"]
    assert _picklable({"names": ["a"]}) == {"names": ["a"]}
