"""Starts the reward workers."""

from collections.abc import Sequence

from ray.util.placement_group import PlacementGroup

from actors.placement import Plan
from actors.reward import RewardJob, RewardPool
from raytune.config.run import RunConfig
from raytune.data.store import RowStore
from raytune.launch_rl.roles import place


def start_rewards(cfg: RunConfig, plan: Plan, placement: PlacementGroup, stores: Sequence[RowStore]) -> RewardPool:
    """Start the workers. Args: stores: of training and held-out prompts; rewards may ask for columns that all have."""
    first, *others = [store.columns(0) for store in stores]
    columns = tuple(name for name in first if all(name in other for other in others))
    job = RewardJob(cfg.reward, cfg.model, cfg.template, columns=columns, max_length=cfg.sampling.max_new_tokens)
    places = [
        {"num_cpus": plan.bundles[index].cpus, "scheduling_strategy": place(placement, index)}
        for index in plan.of_role("reward")
    ]
    return RewardPool(job, places)
