"""Starts the reward workers."""

from ray.util.placement_group import PlacementGroup

from actors.placement import REWARD, Plan
from actors.reward import RewardJob, RewardPool
from raytune.config.run import RunConfig
from raytune.launch_rl.roles import place
from raytune.stages.answerable import PromptRows


def start_rewards(cfg: RunConfig, plan: Plan, placement: PlacementGroup, store: PromptRows) -> RewardPool:
    columns = tuple(store.columns(0))
    job = RewardJob(cfg.reward, cfg.model, cfg.template, columns=columns, max_length=cfg.sampling.max_new_tokens)
    places = [
        {"num_cpus": plan.bundles[index].seat(REWARD)[0], "scheduling_strategy": place(placement, index)}
        for index in plan.of_role("reward")
    ]
    return RewardPool(job, places)
