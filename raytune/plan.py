"""`raytune plan`: what a run would need and where it would go, without starting anything."""

import os

from actors.cluster import connect
from actors.placement import NodeShape, Plan, place
from actors.scheduler import nodes
from raytune.config.load import Resolved
from raytune.config.rules import check_built, check_verb
from raytune.config.run import RunConfig
from raytune.data.batches import rows_per_step
from raytune.engine.build import choose_engine, compute_dtype, trainable_dtype
from raytune.engine.memory import MemoryEstimate, activation_bytes, estimate
from raytune.launch import plan_of
from raytune.models.adapters import attach
from raytune.models.loader import count_parameters, load_model
from raytune.stages.build import model_shape

# Tensors of optimizer state per trainable parameter; adafactor's are factored and hardly count.
_OPTIMIZER_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1, "adafactor": 0}


def describe_plan(resolved: Resolved) -> str:
    """The plan as text. Raises PlacementError when the nodes could never hold it."""
    cfg = resolved.config
    check_built(cfg, "train")
    check_verb(cfg, "train")
    shapes = _nodes(cfg)
    plan = plan_of(cfg, has_gpus=any(shape.gpus for shape in shapes))
    homes = place(plan, shapes)
    trainable, total, memory = _sizes(cfg)
    lines = [f"run        {plan.run}", f"engine     {choose_engine(cfg.cluster.engine, cfg.cluster.num_workers)}"]
    lines += _bundle_lines(plan, homes)
    lines += [
        f"batch      {rows_per_step(cfg.train, cfg.cluster.num_workers)} rows a step over all ranks",
        f"parameters {trainable:,} train of {total:,} ({100 * trainable / total:.2f} %)",
        f"memory     {_gib(memory.total)} a rank: weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, "
        f"optimizer {_gib(memory.optimizer)}, activations up to {_gib(memory.activations)}",
    ]
    return "\n".join(lines)


def _nodes(cfg: RunConfig) -> list[NodeShape]:
    """Nodes of the cluster the run would use; this machine, with logical CPUs for the plan, when there is none."""
    if cfg.cluster.ray_address or os.environ.get("RAY_ADDRESS"):
        connect(cfg.cluster, cpus=0)
        return nodes()
    import torch

    gpus = torch.cuda.device_count()
    local = plan_of(cfg, has_gpus=gpus > 0)
    return [NodeShape("this machine", max(os.cpu_count() or 1, local.cpus), gpus)]


def _bundle_lines(plan: Plan, homes: list[str]) -> list[str]:
    lines = []
    for bundle, home in zip(plan.bundles, homes, strict=True):
        gpus = f", {bundle.gpus:g} GPU" if bundle.gpus else ""
        lines.append(f"{bundle.role:<10} {bundle.rank}: {bundle.cpus:g} CPU{gpus} on {home}")
    return lines


def _sizes(cfg: RunConfig) -> tuple[int, int, MemoryEstimate]:
    """Trainable and all parameters, and the memory of one rank, from the model's config alone."""
    compute, trained = compute_dtype(cfg.precision), trainable_dtype(cfg.precision)
    model = load_model(cfg.model, dtype=compute, cutoff_len=cfg.data.cutoff_len, meta=True)
    # Weights of existing adapters do not change the sizes, and cannot be loaded onto nothing.
    adapter = cfg.adapter.model_copy(update={"adapter_name_or_path": ()})
    trainable, total = count_parameters(attach(model, adapter, trainable_dtype=trained))
    shards = cfg.cluster.num_workers if cfg.cluster.engine == "fsdp2" else 1
    tokens = cfg.train.max_tokens_per_batch or cfg.train.per_device_train_batch_size * cfg.data.cutoff_len
    kept = activation_bytes(
        model_shape(model.config),
        tokens=tokens,
        dtype_bytes=compute.itemsize,
        checkpointing=cfg.precision.gradient_checkpointing is True,
    )
    sizes = estimate(
        num_parameters=total,
        num_trainable=trainable,
        frozen_bytes=compute.itemsize,
        trainable_bytes=trained.itemsize,
        optimizer_states=_OPTIMIZER_STATES[cfg.optim.optim],
        shards=shards,
        activations=kept,
    )
    return trainable, total, sizes


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
