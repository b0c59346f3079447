"""Whether the models of a run that learns from answers can be in memory: said before anything is reserved."""

from collections.abc import Sequence

import torch

from actors.placement import NodeShape, Plan, check_memory
from raytune.config.run import RunConfig
from raytune.errors import PlacementError
from raytune.launch_rl.backend import backend_of
from raytune.launch_rl.rollouts import rollout_dtype
from raytune.models.entries import TORCH_DTYPES
from raytune.stages.sizes import Sizes, sizes_of

_GIB = 2**30


def check_room(cfg: RunConfig, plan: Plan, shapes: Sequence[NodeShape]) -> None:
    """Raise PlacementError for models that the nodes' memory cannot hold, or a GPU that ranks and replicas share.

    What is certain counts alone: weights, gradients, optimizer and caches, no activations and no libraries.
    """
    sizes = sizes_of(cfg)
    if plan.gpus:
        if plan.colocated and torch.cuda.is_available():
            whole = torch.cuda.get_device_properties(0).total_memory
            check_shared_gpu(cfg, sizes, whole)
        return
    check_memory(plan, needs_of(cfg, sizes), shapes)


def needs_of(cfg: RunConfig, sizes: Sizes) -> dict[str, float]:
    """Bytes of an actor on a CPU, by role."""
    cache = cfg.generation.kv_cache_gb * _GIB if backend_of(cfg.generation) == "vllm" else 0.0
    return {
        "trainer": _kept(sizes),
        "critic": _kept(sizes),
        "rollout": replica_weights(cfg, sizes) + cache,
    }


def check_shared_gpu(cfg: RunConfig, sizes: Sizes, whole: int) -> None:
    """Each of the two has the GPU to itself in its turn. Args: whole: bytes of the GPU."""
    if backend_of(cfg.generation) == "vllm":
        share, remedy = cfg.rollout.vllm_gpu_util, "Raise vllm_gpu_util."
    else:
        share, remedy = 1.0, "Set rollout_dtype: bfloat16."
    # A critic of its own has a model of the same size, and learns in the same turn.
    ranks, models = ("a rank with its critic", 2) if cfg.policy.critic == "own" else ("a rank", 1)
    for who, needs, has, fix in (
        (ranks, models * _kept(sizes), whole, "Use finetuning_type: lora, engine: fsdp2 or placement: disaggregated."),
        ("a rollout replica", replica_weights(cfg, sizes), share * whole, remedy),
    ):
        if needs > has:
            raise PlacementError(
                f"{who} needs {needs / _GIB:.1f} GiB for its model, and has {has / _GIB:.1f} GiB of the GPU that it "
                "shares (placement: colocated)",
                fix=fix,
            )


def replica_weights(cfg: RunConfig, sizes: Sizes) -> float:
    """Bytes of a replica's model."""
    return float(sizes.num_parameters * TORCH_DTYPES[rollout_dtype(cfg)].itemsize)


def _kept(sizes: Sizes) -> float:
    return float(sizes.rank.weights + sizes.rank.gradients + sizes.rank.optimizer)
