"""Starts the rollout replicas: the engine's class, its settings, its place."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.placement import Plan
from actors.reward_desk import RewardLimits
from actors.rollout import RouterLimits
from actors.rollout_replica import Replica, ReplicaSettings, start_replica
from raytune.config.checks.reinforcement import engine_rank
from raytune.config.run import RunConfig
from raytune.engine.build import compute_dtype
from raytune.launch_rl.backend import backend_of
from raytune.launch_rl.roles import place
from raytune.launch_rl.window import window_of
from raytune.stages.samples import Sampling

# Answers that a replica has waiting for each that it draws: enough to fill a place at once, few enough to share.
_WAITING = 2


def start_replicas(cfg: RunConfig, plan: Plan, placement: PlacementGroup, threads: Sequence[int]) -> list[Any]:
    """Args: threads: of each rank, which a colocated replica computes with in its turn."""
    kind, env = _backend(cfg)
    replicas = []
    for index in plan.of_role("rollout"):
        own = int(cfg.generation.rollout_cpus)
        settings = _settings(cfg, plan, threads=_turn(threads, index) if plan.colocated else own)
        cpus, gpus = plan.bundles[index].seat("rollout")
        replicas.append(
            start_replica(
                kind,
                settings,
                cpus=cpus,
                gpus=gpus,
                strategy=place(placement, index),
                env=env(settings, gpu=gpus > 0),
            )
        )
    return replicas


def router_limits(cfg: RunConfig) -> RouterLimits:
    """How much a replica is given at once, and how long it may take."""
    answers = _WAITING * cfg.generation.max_num_seqs
    return RouterLimits(answers=answers, request=group_deadline(cfg), build=start_deadline(cfg))


def _turn(threads: Sequence[int], index: int) -> int:
    """Replicas beyond the ranks have bundles like theirs."""
    return threads[index] if index < len(threads) else threads[0]


def _settings(cfg: RunConfig, plan: Plan, *, threads: int) -> ReplicaSettings:
    return ReplicaSettings(
        str(cfg.model.model_name_or_path),
        text=cfg.model,
        dtype=rollout_dtype(cfg),  # type: ignore[arg-type]
        max_length=window_of(cfg),
        max_sequences=cfg.generation.max_num_seqs,
        environment=cfg.rl.environment,
        max_turns=cfg.rl.max_turns,
        environment_seconds=cfg.rl.environment_time_limit,
        adapter_rank=adapter_rank(cfg, plan),
        eager=cfg.rollout.vllm_enforce_eager,
        gpu_memory=cfg.rollout.vllm_gpu_util,
        workers=cfg.generation.rollout_tp_size,
        cache_gib=cfg.generation.kv_cache_gb,
        threads=max(threads, 1),
        sleeps=plan.colocated,
        engine_args=cfg.rollout.vllm_config or {},
        request_deadline=group_deadline(cfg),
    )


def adapter_rank(cfg: RunConfig, plan: Plan) -> int:
    """Rank that engines are built for when the adapter is all they are sent; 0 when whole weights are.

    On a CPU vLLM draws several times slower with an adapter beside the weights.
    """
    sync, gpus = cfg.generation.weight_sync, any(plan.bundles[index].gpus for index in plan.of_role("rollout"))
    wanted = sync == "adapter" or (sync == "auto" and gpus and backend_of(cfg.generation) == "vllm")
    return engine_rank(cfg) or 0 if wanted else 0


def _backend(cfg: RunConfig) -> tuple[type[Replica], Callable[..., dict[str, str]]]:
    """The replica's class, and the environment that its process needs."""
    if backend_of(cfg.generation) == "hf":
        from actors.rollout_hf import HfReplica

        return HfReplica, lambda settings, *, gpu: {}
    from actors.rollout_vllm import VllmReplica, vllm_env

    return VllmReplica, vllm_env


def rollout_dtype(cfg: RunConfig) -> str:
    wanted = cfg.generation.rollout_dtype
    return str(compute_dtype(cfg.precision)).removeprefix("torch.") if wanted == "auto" else wanted


def sampling_of(cfg: RunConfig, stop_ids: tuple[int, ...]) -> Sampling:
    """How answers are drawn. Args: stop_ids: tokens that end one."""
    drawn = cfg.sampling
    return Sampling(
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        top_k=max(drawn.top_k, 0),
        max_new_tokens=drawn.max_new_tokens,
        stop=cfg.generation.stop_strings,
        stop_ids=stop_ids,
        seed=cfg.train.seed,
    )


def group_deadline(cfg: RunConfig) -> float:
    """Seconds that a group of answers may take."""
    return cfg.generation.rollout_timeout


def wait_deadline(cfg: RunConfig) -> float:
    """Seconds without a finished group after which a run ends.

    For a replica that is given up, for one that is built and draws in its place, and for workers that score it.
    """
    scoring = RewardLimits.of(cfg.reward)
    return 2 * group_deadline(cfg) + start_deadline(cfg) + scoring.attempts * scoring.seconds


def start_deadline(cfg: RunConfig) -> float:
    """Seconds that a replica may take to start."""
    return cfg.generation.rollout_start_timeout
