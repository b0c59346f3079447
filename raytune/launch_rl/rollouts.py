"""Starts the rollout replicas: the engine's class, its settings, its place."""

from collections.abc import Callable
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.placement import Plan
from actors.rollout_replica import Replica, ReplicaSettings, start_replica
from raytune.config.checks.reinforcement import engine_rank
from raytune.config.run import RunConfig
from raytune.engine.build import compute_dtype
from raytune.launch_rl.roles import place
from raytune.models.embedded import resolve_model_path
from raytune.stages.samples import Sampling


def start_replicas(cfg: RunConfig, plan: Plan, placement: PlacementGroup) -> list[Any]:
    kind, env = _backend(cfg)
    settings = ReplicaSettings(
        resolve_model_path(
            cfg.model.model_name_or_path,
            revision=cfg.model.model_revision,
            cache_dir=cfg.model.cache_dir,
            token=cfg.model.hf_hub_token,
        ),
        dtype=rollout_dtype(cfg),  # type: ignore[arg-type]
        max_length=cfg.data.cutoff_len + cfg.sampling.max_new_tokens,
        max_sequences=cfg.generation.max_num_seqs,
        environment=cfg.rl.environment,
        adapter_rank=adapter_rank(cfg, plan),
        eager=cfg.rollout.vllm_enforce_eager,
        gpu_memory=cfg.rollout.vllm_gpu_util,
        cache_gib=cfg.generation.kv_cache_gb,
        threads=max(int(cfg.generation.rollout_cpus), 1),
        engine_args=cfg.rollout.vllm_config if isinstance(cfg.rollout.vllm_config, dict) else {},
        request_deadline=group_deadline(cfg),
    )
    replicas = []
    for index in plan.of_role("rollout"):
        bundle = plan.bundles[index]
        replicas.append(
            start_replica(
                kind,
                settings,
                cpus=bundle.cpus,
                gpus=bundle.gpus,
                strategy=place(placement, index),
                env=env(settings, gpu=bundle.gpus > 0),
            )
        )
    return replicas


def adapter_rank(cfg: RunConfig, plan: Plan) -> int:
    """Rank that engines are built for when the adapter is all they are sent; 0 when whole weights are.

    On a CPU vLLM draws several times slower with an adapter beside the weights.
    """
    sync, gpus = cfg.generation.weight_sync, any(plan.bundles[index].gpus for index in plan.of_role("rollout"))
    wanted = sync == "adapter" or (sync == "auto" and gpus and cfg.generation.rollout_backend != "hf")
    return engine_rank(cfg) or 0 if wanted else 0


def _backend(cfg: RunConfig) -> tuple[type[Replica], Callable[..., dict[str, str]]]:
    """The replica's class, and the environment that its process needs."""
    match cfg.generation.rollout_backend:
        case "hf":
            from actors.rollout_hf import HfReplica

            return HfReplica, lambda settings, *, gpu: {}
        case "vllm" | "auto":
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
        stop_ids=stop_ids,
        seed=cfg.train.seed,
    )


def group_deadline(cfg: RunConfig) -> float:
    """Seconds that a group of answers may take."""
    return cfg.generation.rollout_timeout
