"""Builds the loop of a run from its config, and runs it with its monitors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.transcripts import Transcriber
from raytune.config.run import RunConfig
from raytune.data.store import RowStore
from raytune.engine.checkpoint import CheckpointStore
from raytune.launch_rl.roles import Ends, Roles
from raytune.launch_rl.rollouts import group_deadline, sampling_of
from raytune.monitors.build import build_monitors, tensorboard_folder
from raytune.monitors.transcripts import TranscriptWriter
from raytune.stages import grpo, ppo
from raytune.stages.algorithm import Algorithm
from raytune.stages.critic import PolicyWithCritic
from raytune.stages.experience import teaches
from raytune.stages.interfaces import Policy
from raytune.stages.prompts import PromptCursor, PromptSource, prompt_limit
from raytune.stages.reinforce import ReinforceLoop, ReinforcePlan
from raytune.stages.state import TrainState
from raytune.stages.validation import Validation


def learn(
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
    learner = roles.policy if roles.critic is None else PolicyWithCritic(roles.policy, roles.critic)
    monitors = build_monitors(cfg.output, folder, history=state.log_history, total_steps=total, done=state.step)
    transcripts = TranscriptWriter(folder, done=state.step, tensorboard=tensorboard_folder(cfg.output, folder))
    try:
        ends.save_from_now_on()
        loop = ReinforceLoop(
            _plan(cfg, roles, algorithm),
            cfg.output,
            source=_source(cfg, roles.store, state),
            rollouts=roles.rollouts,
            policy=learner,
            weights=roles.weights,
            experience=_experience(cfg, learner, algorithm, state),
            keeps=_keeps(cfg, algorithm),
            transcribe=Transcriber(transcripts, roles.rewards.decoder, every=cfg.rl.transcript_steps),
            monitor=monitors,
            checkpoints=checkpoints,
            state=state,
            interrupted=ends.interrupted,
            validation=_validation(cfg, roles),
        )
        finished = loop.run()
        roles.policy.relay_log()
        return finished
    finally:
        monitors.finish()
        transcripts.finish()


def _plan(cfg: RunConfig, roles: Roles, algorithm: Algorithm) -> ReinforcePlan:
    return ReinforcePlan(
        roles.total_steps,
        roles.prompts_per_step,
        roles.group_size,
        len(roles.store),
        sampling_of(cfg, roles.stop_ids),
        max_staleness=cfg.generation.max_staleness,
        max_rounds=cfg.rl.max_sampling_rounds,
        timeout=group_deadline(cfg),
        algorithm=algorithm.numbers(),
    )


def _validation(cfg: RunConfig, roles: Roles) -> Validation | None:
    if not roles.held_out:
        return None
    evaluation = cfg.evaluation
    drawn = sampling_of(cfg, roles.stop_ids)
    hotter = evaluation.eval_temperature
    return Validation(
        evaluation,
        roles.rollouts,
        roles.held_out,
        drawn if hotter is None else replace(drawn, temperature=hotter),
        evaluation.eval_num_generations,
        every=evaluation.eval_steps or cfg.output.logging_steps,
        timeout=group_deadline(cfg),
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


def _experience(cfg: RunConfig, policy: Policy, algorithm: Algorithm, state: TrainState) -> Any:
    if cfg.train.stage == "grpo":
        return grpo.build_experience(policy, algorithm.estimator, kl=algorithm.kl)
    target = cfg.rl.ppo_target if algorithm.estimator.kl_coef else None
    rule = ppo.PPORule(algorithm.estimator, cfg.rl.ppo_score_norm, cfg.rl.ppo_whiten_rewards, target)
    return ppo.build_experience(policy, rule, kl=algorithm.kl, memory=state.learner)


def _keeps(cfg: RunConfig, algorithm: Algorithm) -> Any:
    if not cfg.rl.dynamic_sampling:
        return lambda group: True
    return lambda group: teaches(group, algorithm.estimator)
