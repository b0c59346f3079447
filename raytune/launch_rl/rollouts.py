"""Starts the rollout replicas: the engine's class, its settings, its place."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.placement import Plan
from actors.rollout import RouterLimits
from actors.rollout_replica import Replica, ReplicaSettings, start_replica
from raytune.config.model import ModelConfig
from raytune.config.run import RunConfig
from raytune.config.template import TemplateConfig
from raytune.engine.build import compute_dtype
from raytune.launch_rl.backend import backend_of
from raytune.launch_rl.roles import place
from raytune.launch_rl.window import model_folder, window_of
from raytune.stages.samples import Sampling

# Answers that a replica has waiting for each that it draws: enough to fill a place at once, few enough to share.
_WAITING = 2


def start_replicas(cfg: RunConfig, plan: Plan, placement: PlacementGroup, threads: Sequence[int]) -> list[Any]:
    """Args: threads: of each rank, which a colocated replica computes with in its turn."""
    kind, env = _backend(cfg)
    replicas = []
    for index in plan.of_role("rollout"):
        own = int(cfg.generation.rollout_cpus)
        settings = _settings(cfg, threads=_turn(threads, index) if plan.colocated else own, sleeps=plan.colocated)
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
    drawn = cfg.generation
    return RouterLimits(
        answers=_WAITING * drawn.max_num_seqs, request=drawn.rollout_timeout, build=drawn.rollout_start_timeout
    )


def _turn(threads: Sequence[int], index: int) -> int:
    """Replicas beyond the ranks have bundles like theirs."""
    return threads[index] if index < len(threads) else threads[0]


def _settings(cfg: RunConfig, *, threads: int, sleeps: bool) -> ReplicaSettings:
    return ReplicaSettings(
        model_folder(cfg),
        dtype=rollout_dtype(cfg),  # type: ignore[arg-type]
        max_length=window_of(cfg),
        max_sequences=cfg.generation.max_num_seqs,
        environment=cfg.rl.environment,
        eager=cfg.rollout.vllm_enforce_eager,
        gpu_memory=cfg.rollout.vllm_gpu_util,
        cache_gib=cfg.generation.kv_cache_gb,
        threads=max(threads, 1),
        sleeps=sleeps,
        engine_args=cfg.rollout.vllm_config or {},
        request_deadline=cfg.generation.rollout_timeout,
    )


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
    """How answers are drawn in training."""
    drawn = cfg.sampling
    return Sampling(
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        top_k=max(drawn.top_k, 0),
        max_new_tokens=drawn.max_new_tokens,
        stop_ids=stop_ids,
        seed=cfg.train.seed,
    )


def find_stop_ids(model: ModelConfig, template: TemplateConfig) -> tuple[int, ...]:
    """The tokens that end an answer, as in chat. Runs in a task: transformers takes seconds to import."""
    from raytune.data.template import load_template
    from raytune.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    chosen = load_template(template.template, tokenizer, template)
    chosen.fix_tokenizer(tokenizer)
    return tuple(chosen.stop_token_ids(tokenizer))
