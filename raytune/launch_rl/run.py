"""One run that learns from its own answers, on resources that are reserved.

plan -> placement group -> trainer ranks + data | rollout replicas + router | reward workers -> weights -> loop
"""

import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.data import prepare_data
from actors.gather import Gatherer
from actors.placement import Plan
from actors.policy import PolicyGroup
from actors.rollout import start_router
from actors.sleepers import ReplicaSleepers
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from raytune.config.run import RunConfig
from raytune.data.batches import rows_per_step
from raytune.data.prepared import PreparedData
from raytune.data.store import RowStore
from raytune.engine.checkpoint import CheckpointStore, write_json
from raytune.errors import DataError
from raytune.launch_rl.learn import learn
from raytune.launch_rl.rewards import start_rewards
from raytune.launch_rl.roles import Ends, Roles, kill, wait_for
from raytune.launch_rl.rollouts import find_stop_ids, rollout_dtype, router_limits, start_replicas
from raytune.launch_rl.window import window_of
from raytune.log import get_logger
from raytune.stages.algorithm import algorithm_of
from raytune.stages.answerable import PromptRows, answerable
from raytune.stages.prompts import planned_steps
from raytune.stages.state import TrainState
from raytune.stages.turns import Turns

log = get_logger(__name__)

ALGORITHM = "algorithm.json"
# Beyond the router's own deadline, for its answer to arrive.
_GRACE = 10.0
# Merged weights come whole with each version; nothing is lost that the next hand-over does not bring.
_SLEEP_LEVEL = 2
# For tens of gigabytes to leave a GPU or come back.
_SLEEP_DEADLINE = 120.0
_TOKENIZER_DEADLINE = 120.0


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
            finished = learn(cfg, folder, roles, algorithm, state, checkpoints, ends)
            if finished:
                if roles.turns is not None:
                    roles.turns.learn()
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
    replicas = start_replicas(cfg, plan, placement, policy.threads)
    closing.callback(kill, replicas)
    router = start_router(replicas, target=0, limits=router_limits(cfg))
    closing.callback(kill, [router])
    serving = router.start.remote(cfg.generation.rollout_start_timeout)
    ending = ray.remote(find_stop_ids).options(num_cpus=0).remote(cfg.model, cfg.template)
    window = window_of(cfg)
    store = _prompts(prepare_data(cfg), window)
    rewards = start_rewards(cfg, plan, placement, store)
    closing.callback(rewards.close)
    prompts_per_step = rows_per_step(cfg.train, cfg.cluster.num_workers) * cfg.rl.ppo_buffer_size
    total = planned_steps(cfg.train, len(store), prompts_per_step)
    sleepers = None
    if plan.colocated:
        # The ranks take their devices only when the replicas have given them back.
        _wait_for_replicas(cfg, serving)
        sleepers = ReplicaSleepers(replicas, router, level=_SLEEP_LEVEL, gpus=plan.gpus > 0, deadline=_SLEEP_DEADLINE)
        sleepers.sleep()
    facts = policy.start_policy(
        building,
        total_steps=total * cfg.rl.ppo_epochs * cfg.rl.num_mini_batches,
        longest=min(int(store.lengths.max()) + cfg.sampling.max_new_tokens, window),
    )
    policy.relay_log()
    if sleepers is None:
        _wait_for_replicas(cfg, serving)
    settings = WeightSettings(uuid.uuid4().hex[:12], kind="merged", dtype=rollout_dtype(cfg))
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
        len(replicas),
    )
    stop_ids = wait_for(ending, _TOKENIZER_DEADLINE, "the tokenizer")
    gatherer = Gatherer(router, rewards)
    turns = Turns(gatherer, policy, weights, replicas=sleepers, ranks=policy) if sleepers else None
    seams = (turns.rollouts, turns.policy, turns.weights) if turns else (gatherer, policy, weights)
    return Roles(policy, rewards, *seams, turns, store, total, prompts_per_step, stop_ids)


def _wait_for_replicas(cfg: RunConfig, serving: Any) -> None:
    wait_for(serving, cfg.generation.rollout_start_timeout + _GRACE, "the rollout replicas to start")


def _prompts(data: PreparedData, window: int) -> PromptRows:
    if data.train is None:
        raise DataError("there are no prompts", fix="Set dataset.")
    return answerable(RowStore.open(data.train), window=window)
