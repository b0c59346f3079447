"""One run that learns from its own answers, on resources that are reserved.

plan -> placement group -> trainer ranks + data | rollout replicas + router | reward workers -> weights -> loop
"""

import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.util.placement_group import PlacementGroup

from actors import stacks
from actors.data import prepare_data
from actors.fleet import State
from actors.gather import Gatherer
from actors.placement import Plan
from actors.policy import PolicyGroup
from actors.rollout import start_router
from actors.sleepers import ReplicaSleepers
from actors.weights import WeightPublisher
from actors.weights_messages import WeightSettings
from raytune.config.run import RunConfig
from raytune.data.batches import rows_per_step
from raytune.data.store import RowStore
from raytune.engine.checkpoint import CheckpointStore, write_json
from raytune.errors import DataError
from raytune.launch_rl.learn import learn
from raytune.launch_rl.rewards import start_model, start_rewards, wait_for_models
from raytune.launch_rl.roles import Ends, Roles, forget, kill, wait_for
from raytune.launch_rl.rollouts import adapter_rank, rollout_dtype, router_limits, start_deadline, start_replicas
from raytune.launch_rl.turns import put_to_sleep
from raytune.launch_rl.window import window_of
from raytune.log import get_logger
from raytune.stages.algorithm import algorithm_of
from raytune.stages.answerable import PromptRows, answerable
from raytune.stages.critic import CRITIC, critic_config
from raytune.stages.prompts import held_out_prompts, planned_steps
from raytune.stages.reinforce import ALGORITHM
from raytune.stages.state import TrainState

if TYPE_CHECKING:
    from raytune.stages.policy_rank import PolicyFacts

log = get_logger(__name__)

# Beyond the router's own deadline, for its answer to arrive.
_GRACE = 10.0


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
        stacks.register("driver")
        closing.callback(stacks.unregister)
        size = {"shared": shared, "epochs": cfg.rl.ppo_epochs, "minibatches": cfg.rl.num_mini_batches}
        policy = PolicyGroup(cfg, plan, placement, algorithm.learn, **size)
        closing.callback(policy.shutdown)
        critic = None
        if algorithm.critic is not None:
            critic = PolicyGroup(critic_config(cfg), plan, placement, algorithm.critic, role=CRITIC, **size)
            closing.callback(critic.shutdown)
        roles = _start(cfg, plan, placement, policy, critic, checkpoint, state, closing)
        log.info("%s", algorithm.summary())
        log.info("ready after %.1f s", time.monotonic() - started)
        with ends.claim():
            write_json(folder / ALGORITHM, algorithm.numbers())
            checkpoints = CheckpointStore(folder)
            state.take_up(checkpoints, keeps_best=cfg.evaluation.load_best_model_at_end)
            return learn(cfg, folder, roles, algorithm, state, checkpoints, ends, checkpoint)


def _start(
    cfg: RunConfig,
    plan: Plan,
    placement: PlacementGroup,
    policy: PolicyGroup,
    critic: PolicyGroup | None,
    checkpoint: Path | None,
    state: TrainState,
    closing: ExitStack,
) -> Roles:
    """Start everything at once: ranks load the model while engines are built and data workers tokenise."""
    building = policy.build(checkpoint)
    critic_building = [] if critic is None else critic.build(None if checkpoint is None else checkpoint / CRITIC)
    replicas = start_replicas(cfg, plan, placement, policy.threads)
    closing.callback(kill, replicas)
    turns_on_gpus = plan.colocated and plan.gpus > 0
    router = start_router(replicas, target=0, limits=router_limits(cfg), takes_turns=turns_on_gpus)
    closing.callback(kill, [router])
    serving = router.start.remote(start_deadline(cfg))
    closing.callback(forget, serving)
    judge, judges = start_model(cfg, plan, placement)
    closing.callback(kill, judges)
    window = window_of(cfg)
    store, held = _prompts(cfg, state, window)
    rewards = start_rewards(cfg, plan, placement, [store, *held], judge)
    closing.callback(rewards.close)
    extent = _extent(cfg, store, window)
    sleepers = None
    if plan.colocated:
        # The ranks take their devices only when the replicas have given them back.
        _wait_for_replicas(cfg, serving)
        sleepers = put_to_sleep(cfg, plan, replicas, router)
    facts = policy.start_policy(building, total_steps=extent.updates, longest=extent.longest)
    policy.relay_log()
    if critic is not None:
        critic.start_policy(critic_building, total_steps=extent.updates, longest=extent.longest)
    wait_for_models(judges)
    if sleepers is None:
        _wait_for_replicas(cfg, serving)
    weights = WeightPublisher(policy.workers, replicas, _settings_of_weights(cfg, plan), router=router)
    closing.callback(weights.close)
    _announce(cfg, plan, facts, len(store), extent)
    return Roles(
        policy,
        critic,
        rewards,
        Gatherer(router, rewards, on_router=partial(_tell_router, weights, sleepers)),
        weights,
        sleepers,
        store,
        extent.steps,
        extent.prompts_per_step,
        group_size=cfg.rl.num_generations,
        stop_ids=facts.stop_ids,
        held_out=[prompt for one in held for prompt in held_out_prompts(one)],
    )


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much a run does. updates: optimizer steps. longest: tokens of the longest prompt with its answer."""

    prompts_per_step: int
    steps: int
    updates: int
    longest: int


def _extent(cfg: RunConfig, store: PromptRows, window: int) -> _Extent:
    prompts_per_step = rows_per_step(cfg.train, cfg.cluster.num_workers) * cfg.rl.ppo_buffer_size
    steps = planned_steps(cfg.train, len(store), prompts_per_step)
    return _Extent(
        prompts_per_step,
        steps,
        updates=steps * cfg.rl.ppo_epochs * cfg.rl.num_mini_batches,
        longest=min(int(store.lengths.max()) + cfg.sampling.max_new_tokens, window),
    )


def _tell_router(weights: WeightPublisher, sleepers: ReplicaSleepers | None) -> None:
    """What a router that was started anew has to know."""
    weights.tell_router()
    if sleepers is not None:
        sleepers.tell_router()


def _wait_for_replicas(cfg: RunConfig, serving: Any) -> None:
    for one in wait_for(serving, start_deadline(cfg) + _GRACE, "the rollout replicas to start"):
        if one.state is not State.HEALTHY:
            log.warning("rollout replica %s does not serve, it is %s: %s", one.index, one.state, one.reason)


def _announce(cfg: RunConfig, plan: Plan, facts: "PolicyFacts", num_prompts: int, extent: _Extent) -> None:
    log.info(
        "%s: %s prompts, %s x %s answers a step, %s steps; %s of %s parameters train; %s x %s on %s, %s x %s",
        cfg.train.stage,
        num_prompts,
        extent.prompts_per_step,
        cfg.rl.num_generations,
        extent.steps,
        f"{facts.num_trainable:,}",
        f"{facts.num_parameters:,}",
        facts.engine,
        cfg.cluster.num_workers,
        facts.device,
        "rollout replica",
        len(plan.of_role("rollout")),
    )


def _settings_of_weights(cfg: RunConfig, plan: Plan) -> WeightSettings:
    rank = adapter_rank(cfg, plan)
    return WeightSettings(
        uuid.uuid4().hex[:12],
        str(cfg.output.output_dir),
        kind="adapter" if rank else "merged",
        dtype=rollout_dtype(cfg),
        max_lora_rank=rank or None,
    )


def _prompts(cfg: RunConfig, state: TrainState, window: int) -> tuple[PromptRows, list[PromptRows]]:
    """The prompts to train on, and the held-out ones of each set."""
    data = prepare_data(cfg)
    state.check_same_rows(data.key)
    if data.train is None:
        raise DataError("there are no prompts", fix="Set dataset.")
    held = [answerable(RowStore.open(path), window=window) for path in data.eval.values()]
    return answerable(RowStore.open(data.train), window=window), held
