"""The sharding engine on a mesh of one rank: what it does to dtypes, without a second process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raytune.config.optim import OptimConfig
from raytune.engine.base import Engine
from raytune.engine.fsdp2 import FSDP2Engine
from raytune.models.loader import upcast_norms
from tests.helpers.tiny import tiny_model

IDS = torch.arange(3, 19).reshape(1, 16)


@pytest.fixture(autouse=True)
def _mesh_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def started(kind: type[Engine], *, upcast: bool, pure: bool) -> Engine:
    model = tiny_model().to(torch.bfloat16) if pure else tiny_model()
    wide = upcast_norms(model) if upcast else []
    settings: dict[str, Any] = {"total_steps": 3, "device": torch.device("cpu"), "wide": wide}
    return kind(model, OptimConfig(), autocast=None if pure else torch.bfloat16, **settings)


def norm_dtypes(engine: Engine) -> set[torch.dtype]:
    """In what the weights of norms are when they are used."""
    seen: set[torch.dtype] = set()
    for name, module in engine.model.named_modules():
        if "norm" in name:
            module.register_forward_hook(lambda norm, _inputs, _output: seen.add(norm.weight.dtype))
    engine.forward(input_ids=IDS).logits.float().sum().backward()
    return seen


@pytest.mark.parametrize("pure", [False, True], ids=["bf16", "pure_bf16"])
def test_norms_stay_in_float32_where_they_are_asked_to(pure):
    assert norm_dtypes(started(FSDP2Engine, upcast=True, pure=pure)) == {torch.float32}
    assert norm_dtypes(started(FSDP2Engine, upcast=False, pure=pure)) == {torch.bfloat16}


def test_wide_norms_compute_what_they_do_without_shards():
    logits = [started(kind, upcast=True, pure=True).forward(input_ids=IDS).logits for kind in (Engine, FSDP2Engine)]
    assert torch.equal(*logits)
