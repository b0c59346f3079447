"""Fully sharded data parallel (PyTorch `fully_shard`): every rank holds a share of weights, gradients and optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from raytune.data.collate import Batch
from raytune.engine.base import Answer, Engine, Forward
from raytune.errors import ModelError


class FSDP2Engine(Engine):
    """Shards each decoder layer on its own and the rest (embeddings, norm, head) together.

    Gradients are reduced at every micro-batch: accumulated ones stay sharded, which is what sharding is for.
    """

    def _place(self, model: nn.Module) -> nn.Module:
        # fully_shard moves each part to the device as it shards it; the whole model might not fit there.
        return model

    def _wrap(self, model: nn.Module) -> Callable[..., Any]:
        policy = MixedPrecisionPolicy()
        if self._autocast_dtype is not None:
            # The shards are cast before they are gathered, so no autocast is needed and half as much travels.
            policy = MixedPrecisionPolicy(param_dtype=self._autocast_dtype, reduce_dtype=torch.float32)
            self._autocast_dtype = None
        shard(model, device=self.device, ranks=self.world_size, policy=policy, wide=self._wide)
        return model

    def evaluate(self, ask: Callable[[Forward, Batch], Answer], batch: Batch) -> Answer:
        found = super().evaluate(ask, batch)
        reshard(self.model)
        return found


def shard(
    model: nn.Module,
    *,
    device: torch.device,
    ranks: int,
    policy: MixedPrecisionPolicy | None = None,
    wide: Sequence[nn.Module] = (),
) -> None:
    """Shard a model in place. Args: wide: modules whose weights stay in float32."""
    mesh = init_device_mesh(device.type, (ranks,))
    policy = policy or MixedPrecisionPolicy()
    for module in wide:
        # A group of its own, which the policy of the others does not cast; nor is its input.
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights. The root keeps its own for a backward pass that does not come after an evaluation;
    saving needs the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the members of its longest module list."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ModelError("the model has no list of layers to shard", fix="Use engine: ddp.")
    return list(max(lists, key=len))
