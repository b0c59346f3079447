"""Where a critic of its own begins."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raytune.config.load import load_config
from raytune.config.run import RunConfig
from raytune.stages.algorithm import algorithm_of
from raytune.stages.critic import critic_config
from raytune.stages.policy_loss import LearnRule
from raytune.stages.policy_rank import PolicyRank
from tests.helpers.runs import run_config

CPU = torch.device("cpu")


def config(**keys: Any) -> RunConfig:
    return load_config({"model_name_or_path": "m", "stage": "ppo", "critic": "own", **keys}).config


def adapter(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


def start(cfg: RunConfig) -> tuple[str, str, tuple[str, ...]]:
    critic = critic_config(cfg)
    assert not critic.adapter.create_new_adapter
    return critic.model.model_name_or_path, critic.adapter.finetuning_type, critic.adapter.adapter_name_or_path


def test_without_a_trained_reward_model_it_begins_as_the_policy():
    assert start(config()) == ("m", "lora", ())
    assert start(config(finetuning_type="full", reward_model="http://a", reward_model_type="api"))[:2] == ("m", "full")


def test_a_whole_reward_model_trains_as_the_policy_does():
    keys = {"reward_model": "rm", "reward_model_type": "full"}
    assert start(config(**keys)) == ("rm", "lora", ())
    assert start(config(**keys, finetuning_type="full")) == ("rm", "full", ())
    assert start(config(**keys, finetuning_type="full", reward_model_adapters="a,b")) == ("rm", "lora", ("a", "b"))


@pytest.mark.parametrize("create", [True, False])
def test_an_adapter_goes_on_upon_what_the_policy_has_merged(tmp_path, create):
    first, second = adapter(tmp_path / "first" / "part"), adapter(tmp_path / "second" / "part")
    names = f"{tmp_path / 'first'},{tmp_path / 'second'}"
    keys = {"adapter_name_or_path": names, "adapter_folder": "part", "create_new_adapter": create}
    merged = (first, second) if create else (first,)
    assert start(config(reward_model="rm", **keys)) == ("m", "lora", (*merged, "rm"))
    assert critic_config(config(reward_model="rm", **keys)).adapter.adapter_folder is None


def test_it_has_a_learning_rate_and_a_meeting_point_of_its_own():
    cfg = config(learning_rate=1e-6, critic_learning_rate=1e-5, master_port=4711)
    critic = critic_config(cfg)
    assert (critic.optim.learning_rate, critic.cluster.master_port) == (1e-5, None)
    assert critic_config(config(learning_rate=1e-6)).optim.learning_rate == 1e-6


def test_policy_and_critic_share_the_work():
    rules = algorithm_of(config())
    assert rules.critic is not None
    assert (rules.learn.role, rules.critic.role) == ("policy", "critic")
    assert (rules.learn.reference, rules.critic.reference) == (True, False)
    shared = algorithm_of(config(critic="shared"))
    assert (shared.learn.role, shared.critic) == ("actor_critic", None)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_begins_as_the_reward_model_trunk_and_head(tmp_path, method):
    rule = LearnRule(role="critic")
    rank = PolicyRank(run_config(tmp_path, finetuning_type=method), rule, rank=0, world_size=1, device=CPU)
    rank.build(None)
    rank.start(total_steps=1, longest=64, checkpoint=None)
    torch.manual_seed(3)
    for param in rank.model.parameters():
        if param.requires_grad:
            torch.nn.init.normal_(param, std=0.05)
    rank.save(tmp_path, with_state=False)
    keys = {"stage": "ppo", "critic": "own", "reward_model": str(tmp_path), "reward_model_type": method}
    critic = PolicyRank(
        critic_config(run_config(tmp_path, finetuning_type=method, **keys)), rule, rank=0, world_size=1, device=CPU
    )
    critic.build(None)
    wanted = dict(rank.model.named_parameters())
    assert any("v_head" in name for name in wanted)
    for name, param in critic.model.named_parameters():
        assert torch.equal(param, wanted[name]), name
        assert param.requires_grad == wanted[name].requires_grad, name
