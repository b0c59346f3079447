"""Several trainer ranks in processes of their own, without Ray."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor

from raytune.stages.interfaces import TokenNumbers
from raytune.stages.policy_loss import LearnRule
from raytune.stages.policy_plan import Share
from raytune.stages.policy_rank import PolicyRank
from tests.helpers.runs import run_config

_DEADLINE = timedelta(seconds=60)


def on_ranks(folder: Path, count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `work(rank, count, *arguments)` in `count` processes of one gloo group; returns what each gave."""
    mp.spawn(_rank, args=(count, str(folder), work, arguments), nprocs=count)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(count)]


def _rank(rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_DEADLINE)
    torch.save(work(rank, count, *arguments), f"{folder}/rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def learn_each(
    rank: int, count: int, folder: Path, runs: list[tuple[dict[str, Any], LearnRule]], shares: list[Share]
) -> list[Any]:
    """`learn` for several runs, one after the other in the same processes."""
    return [learn(rank, count, folder, keys, rule, shares) for keys, rule in runs]


def learn(
    rank: int, count: int, folder: Path, keys: dict[str, Any], rule: LearnRule, shares: list[Share]
) -> tuple[list[dict[str, Tensor]], list[TokenNumbers], Any]:
    """Whole gradients of every optimizer step, numbers of this rank's answers, and the sums of the update.

    A step makes all weights a tenth larger, so that later ones have a ratio to the policy before it.
    """
    policy = PolicyRank(run_config(folder, **keys), rule, rank=rank, world_size=count, device=torch.device("cpu"))
    policy.build(None)
    torch.manual_seed(3)
    for name, param in policy.model.named_parameters():
        if "lora_B" in name or "v_head" in name:
            torch.nn.init.normal_(param, std=0.05)
    policy.start(total_steps=10, longest=64, checkpoint=None)
    caught: list[dict[str, Tensor]] = []

    def catch() -> None:
        caught.append({n: _whole(p.grad) for n, p in policy.model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            for param in policy.model.parameters():
                if param.requires_grad:
                    param.mul_(1.1)

    policy.engine.optimizer.step = catch  # type: ignore[method-assign]
    numbers = policy.values(shares[rank])
    return caught, numbers, policy.update(1, shares[rank])


def _whole(grad: Tensor) -> Tensor:
    return (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
