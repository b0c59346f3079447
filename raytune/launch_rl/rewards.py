"""Starts the reward workers, and the trained reward model that they ask."""

from collections.abc import Sequence
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.placement import Plan
from actors.reward import RewardJob, RewardPool
from actors.reward_model import await_reward_model, model_job, start_reward_model
from raytune.config.run import RunConfig
from raytune.launch_rl.roles import place
from raytune.stages.answerable import PromptRows


def start_model(cfg: RunConfig, plan: Plan, placement: PlacementGroup) -> tuple[str | None, list[Any]]:
    """Begin loading the trained reward model, if the run has one; returns its name and the actors to await and end."""
    cutoff_len = cfg.data.cutoff_len + cfg.sampling.max_new_tokens
    job = model_job(cfg.reward, cfg.model, cfg.adapter, cutoff_len=cutoff_len)
    if job is None:
        return None, []
    name, worker = start_reward_model(job, _places(plan, placement, "reward_model")[0])
    return name, [worker]


def wait_for_models(workers: Sequence[Any]) -> None:
    """Until the reward models are loaded. Errors: as await_reward_model."""
    for worker in workers:
        await_reward_model(worker)


def start_rewards(
    cfg: RunConfig, plan: Plan, placement: PlacementGroup, stores: Sequence[PromptRows], model: str | None
) -> RewardPool:
    """Start the workers. Errors: as RewardPool.

    Args: stores: of training and held-out prompts; rewards may ask for columns that all have. model: name of the
    reward model's actor.
    """
    first, *others = [store.columns(0) for store in stores]
    columns = tuple(name for name in first if all(name in other for other in others))
    longest = cfg.sampling.max_new_tokens
    job = RewardJob(cfg.reward, cfg.model, cfg.template, columns=columns, max_length=longest, reward_model=model)
    return RewardPool(job, _places(plan, placement, "reward"))


def _places(plan: Plan, placement: PlacementGroup, role: str) -> list[dict[str, Any]]:
    """Ray's options of each actor of a role."""
    seats = [(index, *plan.bundles[index].seat(role)) for index in plan.of_role(role)]
    return [
        {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": place(placement, index)}
        for index, cpus, gpus in seats
    ]
