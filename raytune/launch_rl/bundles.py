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
    if lacks is None or cfg.generation.max_staleness > 0 or max(gpus, cfg.generation.rollout_tp_size) > 1:
        return apart
    together = _together(cfg, shapes, run=run, gpus=gpus)
    if _lacking(together, shapes) is not None:
        return apart
    return replace(together, note=f"ranks and rollout replicas take turns (placement: colocated): apart {lacks}")


def _apart(cfg: RunConfig, shapes: Sequence[NodeShape], *, run: str, gpus: float) -> Plan:
    """A bundle for every actor, a replica's for all of its workers: they are processes of one node.

    Where bundles do not fit, ranks are counted by the CPU that each needs at least.
    """
    cluster = cfg.cluster
    size = 1.0 if gpus else 0.0
    workers, count = cfg.generation.rollout_tp_size, cfg.generation.num_rollouts
    replicas = [Bundle("rollout", rank, cfg.generation.rollout_cpus * workers, size * workers) for rank in range(count)]
    others = [*replicas, *_reward_workers(cfg), *_reward_model(cfg, size)]
    critics = cluster.num_workers if _has_critic(cfg) else 0
    share = share_of_cpus(room_beside(shapes, others), num_ranks=cluster.num_workers + critics, gpus_per_rank=gpus)

    def plan(cpus: float) -> Plan:
        own = [Bundle("critic", rank, cpus, gpus) for rank in range(critics)]
        ranks = {"num_ranks": cluster.num_workers, "cpus_per_rank": cpus, "gpus_per_rank": gpus}
        return make_plan(run, **ranks, priority=cluster.priority, others=[*own, *others])

    whole = plan(cluster.cpus_per_worker or share)
    return whole if cluster.cpus_per_worker or _lacking(whole, shapes) is None else plan(1)


def _together(cfg: RunConfig, shapes: Sequence[NodeShape], *, run: str, gpus: float) -> Plan:
    """A bundle for a rank, a replica and their share of reward workers; what there is more of has bundles like them.

    A trained reward model scores while answers are drawn, so it has a bundle of its own.
    """
    if gpus > 1:
        raise ConfigError(
            f"colocated ranks and replicas share a GPU, and gpus_per_worker is {gpus:g}", fix="Set gpus_per_worker: 1."
        )
    if cfg.generation.rollout_tp_size > 1:
        raise ConfigError(
            "a colocated replica takes turns with one rank in that rank's bundle, and rollout_tp_size "
            f"{cfg.generation.rollout_tp_size} wants several ranks' devices",
            fix="Set rollout_tp_size: 1, or placement: disaggregated.",
        )
    ranks, replicas = cfg.cluster.num_workers, cfg.generation.num_rollouts
    judge = _reward_model(cfg, 1.0 if gpus else 0.0)
    share = share_of_cpus(room_beside(shapes, judge), num_ranks=max(ranks, replicas), gpus_per_rank=gpus)
    cpus = max(cfg.cluster.cpus_per_worker or share, cfg.generation.rollout_cpus)
    guests: list[list[str]] = [[] for _ in range(max(ranks, replicas))]
    for rank, riders in enumerate(guests):
        riders += ["critic"] if rank < ranks and _has_critic(cfg) else []
        riders += ["rollout"] if rank < min(ranks, replicas) else []
    for worker, riders in zip(_reward_workers(cfg), cycle(guests), strict=False):
        riders.append(worker.role)
    bundles = [
        Bundle("trainer" if rank < ranks else "rollout", rank, cpus, gpus, tuple(riders))
        for rank, riders in enumerate(guests)
    ]
    return Plan(run, (*bundles, *judge), cfg.cluster.priority)


def _reward_workers(cfg: RunConfig) -> list[Bundle]:
    return [Bundle(REWARD, rank, cfg.generation.reward_cpus, 0.0) for rank in range(cfg.generation.num_reward_workers)]


def _reward_model(cfg: RunConfig, gpus: float) -> list[Bundle]:
    trained = cfg.reward.reward_model is not None and cfg.reward.reward_model_type != "api"
    return [Bundle("reward_model", 0, 1.0, gpus)] if trained else []


def _has_critic(cfg: RunConfig) -> bool:
    return cfg.policy.critic == "own"


def _lacking(plan: Plan, shapes: Sequence[NodeShape]) -> str | None:
    """What the nodes lack for a plan, None if they hold it."""
    try:
        place(plan, shapes)
    except PlacementError as error:
        return error.what
    return None
