"""`raytune plan`: what a run would need and where it would go, without starting anything."""

from collections.abc import Sequence

from actors.autoscaling import adds_nodes
from actors.cluster import connected, local_node, named_cluster
from actors.placement import NodeShape, Plan, homes
from actors.scheduler import nodes
from raytune.config.checks.reinforcement import learns_from_answers
from raytune.config.generation import GenerationConfig
from raytune.config.load import Resolved
from raytune.config.paths import absolute_paths
from raytune.config.rules import check_built, check_verb
from raytune.config.run import RunConfig
from raytune.data.batches import rows_per_step
from raytune.engine.build import choose_engine
from raytune.launch import plan_of
from raytune.stages.sizes import Sizes, sizes_of


def describe_plan(resolved: Resolved) -> str:
    """The plan as text. Raises what a launch raises: ConfigError, and PlacementError when no node could hold it."""
    cfg = absolute_paths(resolved.config)
    check_built(cfg, "train")
    check_verb(cfg, "train")
    sizes = sizes_of(cfg)
    shapes, grows = _nodes(cfg)
    plan = plan_of(cfg, shapes, grows=grows)
    places = homes(plan, shapes, adds_nodes=grows)
    memory = sizes.rank
    lines = [f"run        {plan.run}", f"engine     {choose_engine(cfg.cluster.engine, cfg.cluster.num_workers)}"]
    lines += _bundle_lines(plan, places)
    lines += [
        f"batch      {rows_per_step(cfg.train, cfg.cluster.num_workers)} rows a step over all ranks",
        f"parameters {sizes.num_trainable:,} train of {sizes.num_parameters:,} "
        f"({100 * sizes.num_trainable / sizes.num_parameters:.2f} %)",
        f"memory     {_gib(memory.total)} a rank: weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, "
        f"optimizer {_gib(memory.optimizer)}, activations up to {_gib(memory.activations)}",
    ]
    if learns_from_answers(cfg):
        lines += _answer_lines(cfg, plan, sizes, shapes)
    return "\n".join(lines)


def _answer_lines(cfg: RunConfig, plan: Plan, sizes: Sizes, shapes: Sequence[NodeShape]) -> list[str]:
    """What is beside the ranks where a model learns from its own answers; refuses what a launch refuses."""
    from raytune import launch_rl

    launch_rl.check(cfg)
    launch_rl.check_room(cfg, plan, shapes)
    drawn = cfg.generation
    weights = launch_rl.replica_weights(cfg, sizes)
    backend = launch_rl.backend_of(drawn)
    lines = [
        f"placement  {'colocated: ranks and rollout replicas take turns' if plan.colocated else 'disaggregated'}",
        f"rollouts   {drawn.num_rollouts} x {backend}{_workers(drawn)}, "
        f"{launch_rl.window_of(cfg)} tokens of prompt and answer, {drawn.max_num_seqs} answers at once",
        f"replica    weights {_gib(weights)}{_cache(cfg, plan) if backend == 'vllm' else ''}",
    ]
    return [*lines, f"note       {plan.note}"] if plan.note else lines


def _cache(cfg: RunConfig, plan: Plan) -> str:
    """What vLLM sets aside; transformers take memory for keys and values as answers grow."""
    share = f"{cfg.rollout.vllm_gpu_util:g} of a GPU" if plan.gpus else _gib(cfg.generation.kv_cache_gb * 2**30)
    return f", keys and values {share}"


def _workers(drawn: GenerationConfig) -> str:
    return f" of {drawn.rollout_tp_size} workers" if drawn.rollout_tp_size > 1 else ""


def _nodes(cfg: RunConfig) -> tuple[list[NodeShape], bool]:
    """Nodes of the cluster the run would use, and whether an autoscaler adds others; this machine without a cluster."""
    if named_cluster(cfg.cluster):
        with connected(cfg.cluster, cpus=0):
            return nodes(), adds_nodes()
    import torch

    wanted = plan_of(cfg, ()).cpus
    return [local_node(cfg.cluster, cpus=wanted, gpus=torch.cuda.device_count())], False


def _bundle_lines(plan: Plan, places: list[str]) -> list[str]:
    lines = []
    for bundle, home in zip(plan.bundles, places, strict=True):
        gpus = f", {bundle.gpus:g} GPU" if bundle.gpus else ""
        guests = f", with {', '.join(bundle.guests)}" if bundle.guests else ""
        lines.append(f"{bundle.role:<10} {bundle.rank}: {bundle.cpus:g} CPU{gpus} on {home}{guests}")
    return lines


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
