"""Which bundles a run needs that learns from its own answers, and whether ranks and replicas take turns in them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from actors.placement import REWARD, Bundle, NodeShape, Plan, make_plan, place, room_beside, share_of_cpus
from raytune.config.run import RunConfig
from raytune.errors import ConfigError, PlacementError


def plan_answers(cfg: RunConfig, shapes: Sequence[NodeShape], *, run: str, gpus: float, grows: bool = False) -> Plan:
    """The plan of `placement`; auto takes turns only where there is no room for both roles beside each other.

    Args: gpus: of a rank. grows: an autoscaler adds nodes, so there may be room later.
    """
    match cfg.generation.placement:
        case "colocated":
            return _together(cfg, shapes, run=run, gpus=gpus)
        case "disaggregated":
            return _apart(cfg, shapes, run=run, gpus=gpus)
    apart = _apart(cfg, shapes, run=run, gpus=gpus)
    lacks = None if grows or not shapes else _lacking(apart, shapes)
    if lacks is None or cfg.generation.max_staleness > 0 or gpus > 1:
        return apart
    together = _together(cfg, shapes, run=run, gpus=gpus)
    if _lacking(together, shapes) is not None:
        return apart
    return replace(together, note=f"ranks and rollout replicas take turns (placement: colocated): apart {lacks}")


def _apart(cfg: RunConfig, shapes: Sequence[NodeShape], *, run: str, gpus: float) -> Plan:
    """A bundle for every actor."""
    cluster, count = cfg.cluster, cfg.generation.num_rollouts
    size = 1.0 if gpus else 0.0
    replicas = [Bundle("rollout", rank, cfg.generation.rollout_cpus, size) for rank in range(count)]
    others = [
        *replicas,
        *(Bundle(REWARD, rank, cfg.generation.reward_cpus, 0.0) for rank in range(cfg.generation.num_reward_workers)),
    ]
    share = share_of_cpus(room_beside(shapes, others), num_ranks=cluster.num_workers, gpus_per_rank=gpus)
    return make_plan(
        run,
        num_ranks=cluster.num_workers,
        cpus_per_rank=cluster.cpus_per_worker or share,
        gpus_per_rank=gpus,
        priority=cluster.priority,
        others=others,
    )


def _together(cfg: RunConfig, shapes: Sequence[NodeShape], *, run: str, gpus: float) -> Plan:
    """A bundle for a rank, a replica and their share of reward workers; what there is more of has bundles like them."""
    if gpus > 1:
        raise ConfigError(
            f"colocated ranks and replicas share a GPU, and gpus_per_worker is {gpus:g}", fix="Set gpus_per_worker: 1."
        )
    cluster, replicas = cfg.cluster, cfg.generation.num_rollouts
    count = max(cluster.num_workers, replicas)
    share = share_of_cpus(shapes, num_ranks=count, gpus_per_rank=gpus)
    cpus = max(cluster.cpus_per_worker or share, cfg.generation.rollout_cpus)
    hosts = ["trainer"] * cluster.num_workers + ["rollout"] * (count - cluster.num_workers)
    shared = min(cluster.num_workers, replicas)
    guests: list[list[str]] = [["rollout"] if rank < shared else [] for rank in range(count)]
    for _, riders in zip(range(cfg.generation.num_reward_workers), cycle(guests), strict=False):
        riders.append(REWARD)
    seats = enumerate(zip(hosts, guests, strict=True))
    bundles = tuple(Bundle(role, rank, cpus, gpus, tuple(riders)) for rank, (role, riders) in seats)
    return Plan(run, bundles, cluster.priority)


def _lacking(plan: Plan, shapes: Sequence[NodeShape]) -> str | None:
    """What the nodes lack for a plan, None if they hold it."""
    try:
        place(plan, shapes)
    except PlacementError as error:
        return error.what
    return None
