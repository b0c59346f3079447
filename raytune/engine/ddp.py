"""Data parallel: every rank holds the whole model, gradients are averaged."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raytune.engine.base import Engine


class DDPEngine(Engine):
    """PyTorch's DistributedDataParallel; gradients travel once per optimizer step."""

    def _wrap(self, model: nn.Module) -> Callable[..., Any]:
        devices = [self.device.index] if self.device.type == "cuda" else None
        self._replica = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        return self._replica

    def _accumulation(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self._replica.no_sync()
