"""Builds and connects a run that learns from its own answers (ppo, grpo).

plan -> placement group -> trainer ranks + data | rollout replicas + router | reward workers -> weights -> loop
"""

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.data import prepare_data
from actors.gather import Gatherer
from actors.placement import Plan
from actors.policy import PolicyGroup
from actors.reward import RewardJob, RewardPool
from actors.rollout import start_router
from actors.rollout_replica import Replica, ReplicaSettings, start_replica
from actors.transcripts import Transcriber
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from raytune.config.run import RunConfig
from raytune.data.batches import rows_per_step
from raytune.data.prepared import PreparedData
from raytune.data.store import RowStore
from raytune.engine.build import compute_dtype
from raytune.engine.checkpoint import CheckpointStore, write_json
from raytune.errors import DataError, RaytuneError, RolloutError
from raytune.log import get_logger
from raytune.models.embedded import resolve_model_path
from raytune.monitors.build import build_monitors
from raytune.monitors.transcripts import TranscriptWriter
from raytune.stages import grpo, ppo
from raytune.stages.algorithm import Algorithm, algorithm_of
from raytune.stages.experience import teaches
from raytune.stages.prompts import PromptCursor, PromptSource, planned_steps, prompt_limit
from raytune.stages.reinforce import ReinforceLoop, ReinforcePlan
from raytune.stages.samples import Sampling
from raytune.stages.state import TrainState

log = get_logger(__name__)

ALGORITHM = "algorithm.json"
# Beyond the router's own deadline, for its answer to arrive.
_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class Ends:
    """What the launch of any run provides.

    Args: claim: context in which the output folder is this run's. publish: puts the finished weights into it.
    interrupted: whether to save and end. save_from_now_on: told before the first step.
    """

    claim: Callable[[], AbstractContextManager[None]]
    publish: Callable[[PolicyGroup, CheckpointStore], None]
    interrupted: Callable[[], bool]
    save_from_now_on: Callable[[], None]


@dataclass
class Roles:
    """The actors of a run and the sizes they agreed on."""

    policy: PolicyGroup
    rewards: RewardPool
    rollouts: Gatherer
    weights: WeightPublisher
    store: RowStore
    total_steps: int
    prompts_per_step: int


def run(
    cfg: RunConfig,
    folder: Path,
    plan: Plan,
    placement: PlacementGroup,
    *,
    state: TrainState,
    checkpoint: Path | None,
    shared: bool,
    ends: Ends,
) -> bool:
    """Train to the end of a run whose resources are reserved. Returns False when it was interrupted."""
    started = time.monotonic()
    algorithm = algorithm_of(cfg)
    with ExitStack() as closing:
        policy = PolicyGroup(
            cfg,
            plan,
            placement,
            algorithm.learn,
            shared=shared,
            epochs=cfg.rl.ppo_epochs,
            minibatches=cfg.rl.num_mini_batches,
        )
        closing.callback(policy.shutdown)
        roles = _start(cfg, plan, placement, policy, checkpoint, closing)
        log.info("%s", algorithm.summary())
        log.info("ready after %.1f s", time.monotonic() - started)
        with ends.claim():
            write_json(folder / ALGORITHM, algorithm.numbers())
            checkpoints = CheckpointStore(folder)
            checkpoints.drop_after(state.step)
            finished = _learn(cfg, folder, roles, algorithm, state, checkpoints, ends)
            if finished:
                ends.publish(policy, checkpoints)
            return finished


def _start(
    cfg: RunConfig,
    plan: Plan,
    placement: PlacementGroup,
    policy: PolicyGroup,
    checkpoint: Path | None,
    closing: ExitStack,
) -> Roles:
    """Start everything at once: ranks load the model while engines are built and data workers tokenise."""
    building = policy.build(checkpoint)
    replicas = _start_replicas(cfg, plan, placement)
    closing.callback(_kill, replicas)
    router = start_router(replicas, target=0)
    closing.callback(_kill, [router])
    serving = router.start.remote(cfg.generation.rollout_start_timeout)
    store = _prompts(prepare_data(cfg))
    rewards = _start_rewards(cfg, plan, placement, store)
    closing.callback(rewards.close)
    prompts_per_step = rows_per_step(cfg.train, cfg.cluster.num_workers) * cfg.rl.ppo_buffer_size
    total = planned_steps(cfg.train, len(store), prompts_per_step)
    facts = policy.start_policy(
        building,
        total_steps=total * cfg.rl.ppo_epochs * cfg.rl.num_mini_batches,
        longest=int(store.lengths.max()) + cfg.sampling.max_new_tokens,
    )
    policy.relay_log()
    _wait(serving, cfg.generation.rollout_start_timeout + _GRACE, "the rollout replicas to start")
    settings = WeightSettings(uuid.uuid4().hex[:12], kind="merged", dtype=_rollout_dtype(cfg))
    weights = WeightPublisher(policy.workers, replicas, settings, router=router)
    closing.callback(weights.close)
    log.info(
        "%s: %s prompts, %s x %s answers a step, %s steps; %s of %s parameters train; %s x %s on %s, %s x %s",
        cfg.train.stage,
        len(store),
        prompts_per_step,
        cfg.rl.num_generations,
        total,
        f"{facts.num_trainable:,}",
        f"{facts.num_parameters:,}",
        facts.engine,
        cfg.cluster.num_workers,
        facts.device,
        "rollout replica",
        cfg.generation.num_rollouts,
    )
    return Roles(policy, rewards, Gatherer(router, rewards), weights, store, total, prompts_per_step)


def _learn(
    cfg: RunConfig,
    folder: Path,
    roles: Roles,
    algorithm: Algorithm,
    state: TrainState,
    checkpoints: CheckpointStore,
    ends: Ends,
) -> bool:
    """Run the loop with its monitors."""
    total = roles.total_steps
    monitors = build_monitors(cfg.output, folder, history=state.log_history, total_steps=total, done=state.step)
    transcripts = TranscriptWriter(folder, done=state.step)
    try:
        ends.save_from_now_on()
        loop = ReinforceLoop(
            _plan(cfg, roles),
            cfg.output,
            source=_source(cfg, roles.store, state),
            rollouts=roles.rollouts,
            policy=roles.policy,
            weights=roles.weights,
            experience=_experience(cfg, roles.policy, algorithm, state),
            keeps=_keeps(cfg, algorithm),
            transcribe=Transcriber(transcripts, roles.rewards.decoder, every=cfg.rl.transcript_steps),
            monitor=monitors,
            checkpoints=checkpoints,
            state=state,
            interrupted=ends.interrupted,
        )
        finished = loop.run()
        roles.policy.relay_log()
        return finished
    finally:
        monitors.finish()
        transcripts.finish()


def _plan(cfg: RunConfig, roles: Roles) -> ReinforcePlan:
    return ReinforcePlan(
        roles.total_steps,
        roles.prompts_per_step,
        cfg.rl.num_generations,
        len(roles.store),
        _sampling(cfg),
        max_staleness=cfg.generation.max_staleness,
        max_rounds=cfg.rl.max_sampling_rounds,
        timeout=cfg.generation.rollout_timeout,
    )


def _source(cfg: RunConfig, store: RowStore, state: TrainState) -> PromptSource:
    number, again = state.prompts
    return PromptSource(
        store,
        seed=cfg.train.seed if cfg.train.data_seed is None else cfg.train.data_seed,
        limit=prompt_limit(cfg.train, len(store)),
        shuffle=not cfg.train.disable_shuffling,
        cursor=PromptCursor(number, again),
    )


def _experience(cfg: RunConfig, policy: PolicyGroup, algorithm: Algorithm, state: TrainState) -> Any:
    if cfg.train.stage == "grpo":
        return grpo.build_experience(policy, algorithm.estimator, kl=algorithm.kl)
    target = cfg.rl.ppo_target if algorithm.estimator.kl_coef else None
    rule = ppo.PPORule(algorithm.estimator, cfg.rl.ppo_score_norm, cfg.rl.ppo_whiten_rewards, target)
    return ppo.build_experience(policy, rule, kl=algorithm.kl, memory=state.learner)


def _keeps(cfg: RunConfig, algorithm: Algorithm) -> Any:
    if not cfg.rl.dynamic_sampling:
        return lambda group: True
    return lambda group: teaches(group, algorithm.estimator)


def _prompts(data: PreparedData) -> RowStore:
    if data.train is None:
        raise DataError("there are no prompts", fix="Set dataset.")
    return RowStore.open(data.train)


def _sampling(cfg: RunConfig) -> Sampling:
    drawn = cfg.sampling
    return Sampling(
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        top_k=max(drawn.top_k, 0),
        max_new_tokens=drawn.max_new_tokens,
        seed=cfg.train.seed,
    )


def _rollout_dtype(cfg: RunConfig) -> str:
    wanted = cfg.generation.rollout_dtype
    return str(compute_dtype(cfg.precision)).removeprefix("torch.") if wanted == "auto" else wanted


def _start_replicas(cfg: RunConfig, plan: Plan, placement: PlacementGroup) -> list[Any]:
    kind, env = _backend(cfg)
    settings = ReplicaSettings(
        resolve_model_path(
            cfg.model.model_name_or_path,
            revision=cfg.model.model_revision,
            cache_dir=cfg.model.cache_dir,
            token=cfg.model.hf_hub_token,
        ),
        dtype=_rollout_dtype(cfg),  # type: ignore[arg-type]
        max_length=cfg.data.cutoff_len + cfg.sampling.max_new_tokens,
        max_sequences=cfg.generation.max_num_seqs,
        environment=cfg.rl.environment,
        eager=cfg.rollout.vllm_enforce_eager,
        gpu_memory=cfg.rollout.vllm_gpu_util,
        cache_gib=cfg.generation.kv_cache_gb,
        threads=max(int(cfg.generation.rollout_cpus), 1),
        engine_args=cfg.rollout.vllm_config if isinstance(cfg.rollout.vllm_config, dict) else {},
        request_deadline=cfg.generation.rollout_timeout,
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
                strategy=_place(placement, index),
                env=env(settings, gpu=bundle.gpus > 0),
            )
        )
    return replicas


def _backend(cfg: RunConfig) -> tuple[type[Replica], Callable[..., dict[str, str]]]:
    """The replica's class, and the environment that its process needs."""
    match cfg.generation.rollout_backend:
        case "hf":
            from actors.rollout_hf import HfReplica

            return HfReplica, lambda settings, *, gpu: {}
        case "vllm" | "auto":
            from actors.rollout_vllm import VllmReplica, vllm_env

            return VllmReplica, vllm_env


def _start_rewards(cfg: RunConfig, plan: Plan, placement: PlacementGroup, store: RowStore) -> RewardPool:
    columns = tuple(store.columns(0))
    job = RewardJob(cfg.reward, cfg.model, cfg.template, columns=columns, max_length=cfg.sampling.max_new_tokens)
    places = [
        {"num_cpus": plan.bundles[index].cpus, "scheduling_strategy": _place(placement, index)}
        for index in plan.of_role("reward")
    ]
    return RewardPool(job, places)


def _place(placement: PlacementGroup, index: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=index)


def _wait(ref: Any, timeout: float, what: str) -> Any:
    try:
        return ray.get(ref, timeout=timeout)
    except GetTimeoutError:
        raise RolloutError(f"waited {timeout:g} s for {what}") from None
    except RayTaskError as error:
        if isinstance(error.cause, RaytuneError):
            raise error.cause from None
        raise


def _kill(handles: list[Any]) -> None:
    for handle in handles:
        ray.kill(handle)
