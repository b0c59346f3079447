"""A policy and a critic that is a model of its own, as one Policy.

samples -> both tell their numbers -> both learn -> the policy's result with the critic's metrics
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytune.config.run import RunConfig
from raytune.models.folder import find_adapters
from raytune.stages.interfaces import Policy, PolicyResult, PolicySample, TokenNumbers

CRITIC = "critic"


class PolicyWithCritic:
    """Implements the Policy Protocol over two trainer groups; the critic's rule has role "critic"."""

    def __init__(self, policy: Policy, critic: Policy) -> None:
        self.policy, self.critic = policy, critic

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        result = self.policy.update(step, samples)
        critic = self.critic.update(step, samples)
        others = {f"critic_{name}": value for name, value in (("loss", critic.loss), ("grad_norm", critic.grad_norm))}
        return replace(result, metrics={**result.metrics, **critic.metrics, **others})

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        """Log-probs of the policy and its reference, values of the critic."""
        told = zip(self.policy.values(samples), self.critic.values(samples), strict=True)
        return [replace(policy, values=critic.values) for policy, critic in told]

    def save(self, folder: Path, *, with_state: bool) -> None:
        """Write the policy into `folder` and the critic into its folder `critic`."""
        self.policy.save(folder, with_state=with_state)
        (folder / CRITIC).mkdir(exist_ok=True)
        self.critic.save(folder / CRITIC, with_state=with_state)


def critic_config(cfg: RunConfig) -> RunConfig:
    """The config of a run's critic of its own: what it begins from, and how fast it learns.

    It begins as the trained reward model, trunk and head, for that has seen what is to be foretold; without one as the
    policy's model with a head that says 0.
    """
    rate = cfg.policy.critic_learning_rate
    changes = {
        **_beginning(cfg),
        "optim": cfg.optim if rate is None else cfg.optim.model_copy(update={"learning_rate": rate}),
        # The policy's ranks meet there.
        "cluster": cfg.cluster.model_copy(update={"master_port": None}),
    }
    return cfg.model_copy(update=changes)


def _beginning(cfg: RunConfig) -> dict[str, Any]:
    reward, adapter = cfg.reward, cfg.adapter
    if reward.reward_model is None or reward.reward_model_type == "api":
        return {}
    names = reward.reward_model_adapters
    model = cfg.model
    if reward.reward_model_type == "lora":
        merged, _ = find_adapters(adapter)
        names = (*map(str, merged), reward.reward_model)
    else:
        own = {"model_name_or_path": reward.reward_model, "model_revision": "main", "train_from_scratch": False}
        model = model.model_copy(update=own)
    goes_on = {"adapter_name_or_path": names, "adapter_folder": None, "create_new_adapter": False}
    method = {"finetuning_type": "lora"} if names else {}
    return {"model": model, "adapter": adapter.model_copy(update=goes_on | method)}
