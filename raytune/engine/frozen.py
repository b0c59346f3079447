"""A model that is only asked, never trained: the reference of a policy, placed like the engine that trains."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from raytune.data.collate import Batch
from raytune.engine.fsdp2 import reshard, shard
from raytune.models.logprobs import label_logits


class FrozenModel:
    """Args: sharded: over all ranks, by `fully_shard`. offload: lie in the host's memory while not in use."""

    def __init__(self, model: Any, *, device: torch.device, ranks: int, sharded: bool, offload: bool = False) -> None:
        self.device, self.sharded = device, sharded
        self.offload = offload and not sharded and device.type != "cpu"
        self.model = model if sharded or self.offload else model.to(device)
        if sharded:
            shard(model, device=device, ranks=ranks)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within: the weights are on the device."""
        if self.offload:
            self.model.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                self.model.to("cpu")

    @torch.no_grad()
    def logits_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As Forward.logits_of. Collective when sharded."""
        found = label_logits(self.model, self.model.get_output_embeddings(), self.model.config, batch)
        if self.sharded:
            reshard(self.model)
        return found
