"""The engine of one process: forward, backward, optimizer step, and reading or writing its state.

Engines of several ranks (ddp.py, fsdp2.py) override how the model is wrapped and little else, so that every stage
trains with every engine.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers.optimization import GreedyLR

from raytune.config.optim import OptimConfig
from raytune.data.collate import Batch
from raytune.engine.loss_scale import LossScale
from raytune.engine.optim import build_optimizer, group_settings
from raytune.engine.schedule import build_schedule, resume_schedule
from raytune.log import get_logger
from raytune.losses.reduce import LossSums, MetricSums
from raytune.models.logprobs import Outputs, label_outputs
from raytune.models.values import value_head_of

log = get_logger(__name__)

Sums = TypeVar("Sums", LossSums, MetricSums)
Answer = TypeVar("Answer")


class Forward(Protocol):
    """What a loss may ask of a model; Engine implements it. Numbers are of a batch's N labelled positions."""

    def logits_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [N, V] and labels [N]."""
        ...

    def values_of(self, batch: Batch, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """The value head's numbers [N] and labels [N]; `last` as in label_outputs."""
        ...

    def outputs_of(self, batch: Batch) -> Outputs:
        """Logits, labels and values from one pass."""
        ...


Loss = Callable[[Forward, Batch], Sums]
"""A stage's loss: it asks for what it needs and returns sums over the batch."""


@dataclass(frozen=True, slots=True)
class StepStats:
    """What an optimizer step did. `skipped` says that float16 gradients overflowed and the step was left out."""

    grad_norm: float
    learning_rate: float
    skipped: bool


class NonFiniteGradient(ArithmeticError):
    """The gradient norm over all ranks is NaN or infinite. Weights and optimizer were left as they were."""


class Engine:
    """One process, one device.

    Args: model: built, with its trainable parameters marked. cfg: optimizer and schedule. total_steps: length of the
    schedule in optimizer steps. autocast: dtype of the forward pass when it differs from the weights' own.
    world_size: number of ranks that share each step. wide: modules whose weights stay in float32 when an engine casts
    those of others.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: OptimConfig,
        *,
        total_steps: int,
        device: torch.device,
        autocast: torch.dtype | None = None,
        world_size: int = 1,
        wide: Sequence[nn.Module] = (),
    ) -> None:
        self.device = device
        self.world_size = world_size
        self._autocast_dtype = autocast
        self._wide = wide
        self._max_grad_norm = cfg.max_grad_norm
        self._settings: dict[str, Any] = cfg.model_dump(mode="json")
        self.model = self._place(model)
        self.forward: Callable[..., Any] = self._wrap(self.model)
        self.optimizer = build_optimizer(self.model, cfg)
        self.schedule: LRScheduler = build_schedule(self.optimizer, cfg, total_steps=total_steps)
        self.loss_scale = LossScale() if autocast is torch.float16 else None
        self._away: list[tuple[dict[str, Any], str]] = []

    def _place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def _wrap(self, model: nn.Module) -> Callable[..., Any]:
        return model

    def _accumulation(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context of one micro-batch's backward; `last` says that the optimizer step follows."""
        return contextlib.nullcontext()

    def forward_backward(self, loss: Loss[Sums], batch: Batch, *, scale: float, last: bool) -> Sums:
        """Add the gradient of `scale * loss` over one micro-batch.

        Args: scale: 1 / (labelled tokens of the global batch), or 0 for a batch that only keeps ranks in step.
        """
        with self._accumulation(last=last):
            sums = loss(self, batch)
            # Engines of several ranks average gradients; the sum over ranks is wanted.
            factor = scale * self.world_size * (self.loss_scale.value if self.loss_scale else 1.0)
            (sums.loss * factor).backward()
        return sums

    @torch.no_grad()
    def evaluate(self, ask: Callable[[Forward, Batch], Answer], batch: Batch) -> Answer:
        """What a loss, or any other question, says of one batch without gradients, in evaluation mode."""
        self.model.eval()
        found = ask(self, batch)
        self.model.train()
        return found

    def logits_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(batch)
        return outputs.logits, outputs.labels

    def values_of(self, batch: Batch, *, last: bool = False) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(batch, value_head=value_head_of(self.model), logits=False, last=last)
        assert outputs.values is not None
        return outputs.values, outputs.labels

    def outputs_of(self, batch: Batch) -> Outputs:
        return self._outputs(batch, value_head=value_head_of(self.model))

    def _outputs(self, batch: Batch, **asked: Any) -> Outputs:
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        with self._autocast():
            return label_outputs(self.forward, head, self.model.config, batch, **asked)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    def optimizer_step(self) -> StepStats:
        """Clip, step the optimizer and the schedule, and clear the gradients."""
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        grads = [param.grad for param in self.model.parameters() if param.grad is not None]
        scale = self.loss_scale.value if self.loss_scale else 1.0
        norm = _total_norm(grads) / scale
        skipped = not math.isfinite(norm)
        if skipped and (self.loss_scale is None or self.loss_scale.exhausted):
            raise NonFiniteGradient(norm)
        if not skipped:
            self._rescale(grads, norm, scale)
            self.optimizer.step()
            if not isinstance(self.schedule, ReduceLROnPlateau | GreedyLR):
                self.schedule.step()
        if self.loss_scale:
            self.loss_scale.update(overflow=skipped)
        self.optimizer.zero_grad(set_to_none=True)
        return StepStats(grad_norm=norm, learning_rate=learning_rate, skipped=skipped)

    def _rescale(self, grads: list[Tensor], norm: float, scale: float) -> None:
        factor = 1.0 / scale
        if self._max_grad_norm > 0 and norm > self._max_grad_norm:
            factor *= self._max_grad_norm / (norm + 1e-6)
        if factor != 1.0:
            torch._foreach_mul_(grads, factor)

    def offload(self, *, weights: bool) -> None:
        """Leave the device to somebody else: optimizer state goes to the host, with `weights` the model too.

        Gradients are gone since the last step. On a CPU everything stays: there is no other memory.
        """
        if self.device.type == "cpu":
            return
        kept = [(state, key) for state in self.optimizer.state.values() for key in state]
        moved = [(state, key) for state, key in kept if _is_on(state[key], self.device)]
        for state, key in moved:
            state[key] = state[key].to("cpu")
        self._away += moved
        if weights:
            self.model.to("cpu")
        torch.cuda.empty_cache()

    def onload(self) -> None:
        """Take back to the device what `offload` moved."""
        if self.device.type == "cpu":
            return
        self.model.to(self.device)
        for state, key in self._away:
            state[key] = state[key].to(self.device)
        self._away = []

    def metric_step(self, metric: float) -> None:
        """Tell a schedule that follows a metric (reduce_lr_on_plateau, greedy) the newest evaluation."""
        if isinstance(self.schedule, ReduceLROnPlateau | GreedyLR):
            self.schedule.step(metric)

    def full_weights(self, *, trainable_only: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield whole (unsharded) parameters on the CPU. Collective: every rank must exhaust it."""
        for name, param in self.model.named_parameters():
            if param.requires_grad or not trainable_only:
                value = param.detach()
                yield name, (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
        if not trainable_only:
            # Buffers that are part of a model's weights, such as the expert biases of some mixtures.
            kept = self.model.state_dict().keys()
            yield from ((name, buffer.detach().cpu()) for name, buffer in self.model.named_buffers() if name in kept)

    def save_state(self, folder: Path) -> None:
        """Write optimizer, schedule and loss scale. Collective. Another number of ranks, or engine, can load them."""
        state = {"optimizer": get_optimizer_state_dict(self.model, self.optimizer)}
        dcp.save(state, checkpoint_id=folder, no_dist=self.world_size == 1)

    def load_state(self, folder: Path) -> None:
        """Load what `save_state` wrote, but for settings such as weight decay: those stay the config's. Collective."""
        settings = group_settings(self.optimizer)
        state = {"optimizer": get_optimizer_state_dict(self.model, self.optimizer)}
        dcp.load(state, checkpoint_id=folder, no_dist=self.world_size == 1)
        set_optimizer_state_dict(self.model, self.optimizer, state["optimizer"])
        for group, kept in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(kept)

    def small_state(self) -> dict[str, Any]:
        """State that is equal on all ranks and small: schedule, loss scale and the settings they were made with."""
        scale = self.loss_scale.state() if self.loss_scale else None
        return {"schedule": self.schedule.state_dict(), "loss_scale": scale, "settings": self._settings}

    def load_small_state(self, state: dict[str, Any]) -> None:
        """Load what `small_state` gave, after `load_state`. Settings stay the config's; a changed one is said aloud."""
        before: dict[str, Any] = state.get("settings", self._settings)
        for key, now in self._settings.items():
            if before.get(key) != now:
                log.info("%s was %s when the checkpoint was saved, is now %s", key, before.get(key), now)
        rates = {"before": before["learning_rate"], "now": self._settings["learning_rate"]}
        resume_schedule(self.schedule, state["schedule"], **rates)
        if self.loss_scale and state["loss_scale"]:
            self.loss_scale.load(state["loss_scale"])


def _is_on(value: Any, device: torch.device) -> bool:
    """Whether it is a tensor there; some optimizers count their steps on the host."""
    return isinstance(value, Tensor) and value.device.type == device.type


def _total_norm(grads: list[Tensor]) -> float:
    norm = torch.nn.utils.get_total_norm(grads)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
