"""Builds the loop of a run from its config, and runs it with its monitors."""

from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.policy import PolicyGroup
from actors.transcripts import Transcriber
from raytune.config.run import RunConfig
from raytune.engine.checkpoint import CheckpointStore
from raytune.errors import PolicyLostError
from raytune.launch_rl.roles import Ends, Roles
from raytune.launch_rl.rollouts import group_deadline, sampling_of, wait_deadline
from raytune.launch_rl.stalls import WatchedRollouts, watchdog_of
from raytune.launch_rl.turns import seams_of
from raytune.monitors.build import build_monitors, tensorboard_folder
from raytune.monitors.transcripts import TranscriptWriter
from raytune.stages import grpo, ppo
from raytune.stages.algorithm import Algorithm
from raytune.stages.answerable import PromptRows
from raytune.stages.critic import CRITIC
from raytune.stages.experience import teaches
from raytune.stages.interfaces import Policy, Rollouts
from raytune.stages.prompts import PromptCursor, PromptSource, prompt_limit
from raytune.stages.recovery import Recovery
from raytune.stages.reinforce import ReinforceLoop, ReinforcePlan
from raytune.stages.state import TrainState
from raytune.stages.turns import Turns
from raytune.stages.validation import Validation


def learn(
    cfg: RunConfig,
    folder: Path,
    roles: Roles,
    algorithm: Algorithm,
    state: TrainState,
    checkpoints: CheckpointStore,
    ends: Ends,
    start: Path | None,
) -> bool:
    """Run the loop with its monitors, and put its result into the folder. Returns False when it was interrupted.

    Args: start: the checkpoint that the ranks began with.
    """
    total = roles.total_steps
    seams = seams_of(roles)
    monitors = build_monitors(cfg.output, folder, history=state.log_history, total_steps=total, done=state.step)
    writer = TranscriptWriter(folder, done=state.step, tensorboard=tensorboard_folder(cfg.output, folder))
    transcripts = Transcriber(writer, roles.rewards.decoder, every=cfg.rl.transcript_steps)

    def rebuild(checkpoint: Path | None) -> None:
        monitors.rewind(state.step, state.log_history)
        transcripts.rewind(state.step)
        _rebuild(roles, seams.turns, checkpoint)

    with ExitStack() as closing:
        closing.callback(monitors.finish)
        closing.callback(transcripts.finish)
        watchdog = watchdog_of(folder, ranks=roles.policy.timeout, rollout=group_deadline(cfg))
        closing.callback(watchdog.close)
        rollouts = WatchedRollouts(seams.rollouts, watchdog.phase)
        ends.save_from_now_on()
        loop = ReinforceLoop(
            _plan(cfg, roles, algorithm),
            cfg.output,
            source=_source(cfg, roles.store, state),
            rollouts=rollouts,
            policy=seams.policy,
            weights=seams.weights,
            experience=_experience(cfg, seams.policy, algorithm, state),
            keeps=teaches if cfg.rl.dynamic_sampling else lambda group: True,
            transcribe=transcripts,
            monitor=monitors,
            checkpoints=checkpoints,
            state=state,
            interrupted=ends.interrupted,
            recovery=Recovery(rebuild, start, cfg.rl.max_rank_restarts),
            phase=watchdog.phase,
            validation=_validation(cfg, roles, rollouts),
        )
        finished = _finish(loop, roles.policy, seams.turns, checkpoints, ends)
        with suppress(PolicyLostError):
            roles.policy.relay_log()
        return finished


def _rebuild(roles: Roles, turns: Turns | None, checkpoint: Path | None) -> None:
    """New ranks in the places of those that were lost, and of the others."""
    for group in (roles.policy, roles.critic):
        # Before replicas are woken: ranks that live still hold their part of a shared device.
        if group is not None:
            group.kill()
    if turns is not None:
        turns.begin_again()
    roles.policy.rebuild(checkpoint)
    if roles.critic is not None:
        roles.critic.rebuild(None if checkpoint is None else checkpoint / CRITIC)
    roles.weights.reopen(roles.policy.workers)
    roles.policy.relay_log()


def _finish(
    loop: ReinforceLoop, policy: PolicyGroup, turns: Turns | None, checkpoints: CheckpointStore, ends: Ends
) -> bool:
    """Run to the end. Ranks that are lost with weights which nobody has saved learn them anew."""
    while loop.run():
        try:
            if turns is not None:
                turns.learn()
            ends.publish(policy, checkpoints)
            return True
        except PolicyLostError as lost:
            loop.recover(lost)
    return False


def _plan(cfg: RunConfig, roles: Roles, algorithm: Algorithm) -> ReinforcePlan:
    return ReinforcePlan(
        roles.total_steps,
        roles.prompts_per_step,
        roles.group_size,
        len(roles.store),
        replace(sampling_of(cfg, roles.stop_ids), greedy_baseline=algorithm.estimator.kind == "remax"),
        max_staleness=cfg.generation.max_staleness,
        max_rounds=cfg.rl.max_sampling_rounds,
        timeout=wait_deadline(cfg),
        algorithm=algorithm.numbers(),
    )


def _validation(cfg: RunConfig, roles: Roles, rollouts: Rollouts) -> Validation | None:
    if not roles.held_out:
        return None
    evaluation = cfg.evaluation
    drawn = sampling_of(cfg, roles.stop_ids)
    hotter = evaluation.eval_temperature
    return Validation(
        evaluation,
        rollouts,
        roles.held_out,
        drawn if hotter is None else replace(drawn, temperature=hotter),
        evaluation.eval_num_generations,
        every=evaluation.eval_steps or cfg.output.logging_steps,
        timeout=wait_deadline(cfg),
    )


def _source(cfg: RunConfig, store: PromptRows, state: TrainState) -> PromptSource:
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
    rule = ppo.PPORule(algorithm.estimator, cfg.rl.ppo_score_norm, target)
    return ppo.build_experience(policy, rule, kl=algorithm.kl, memory=state.learner)
