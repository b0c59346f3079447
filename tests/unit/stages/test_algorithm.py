"""From keys to the rules of an algorithm, against the numbers of each method's paper."""

from typing import get_args

import pytest

from raytune.config.load import load_config
from raytune.errors import ConfigError
from raytune.losses.policy import PolicyRule
from raytune.losses.rl_compat import System
from raytune.stages.algorithm import algorithm_of


@pytest.mark.parametrize("wanted", [True, False])
def test_whitened_rewards_are_the_estimators_matter(wanted: bool) -> None:
    keys = {"model_name_or_path": "m", "stage": "ppo", "ppo_whiten_rewards": wanted}
    assert algorithm_of(load_config(keys).config).estimator.whiten_rewards is wanted


def test_rloo_is_trls_where_it_is_asked_for() -> None:
    keys = {"model_name_or_path": "m", "stage": "grpo", "advantage": "rloo"}
    ours, theirs = (algorithm_of(load_config({**keys, "rl_compat": name}).config).learn for name in ("raytune", "trl"))
    assert (ours.policy.ratio, ours.aggregation) == ("token", "token")
    # RLOOTrainer of TRL: exp of the answers' summed log ratios, without a clamp; the mean over answers.
    assert theirs.policy == PolicyRule(ratio="sequence_product", clip_low=0.2, clip_high=0.2, log_ratio_clamp=None)
    assert (theirs.aggregation, theirs.corrections) == ("sequence", ())
    of_tokens = load_config({**keys, "rl_compat": "trl", "ratio_level": "sequence", "loss_aggregation": "token"})
    asked = algorithm_of(of_tokens.config).learn
    assert (asked.policy.ratio, asked.aggregation) == ("sequence", "token")


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 20}], ids=str)
@pytest.mark.parametrize("system", get_args(System))
@pytest.mark.parametrize("advantage", ["group", "rloo"])
def test_truncated_draws_are_refused_wherever_ratios_to_the_rollouts_are_weighed(
    system: System, cut: dict[str, float], advantage: str
) -> None:
    keys = {"model_name_or_path": "m", "stage": "grpo", "rl_compat": system, "advantage": advantage, **cut}
    whole = {**keys, "top_p": 1.0, "top_k": 0}
    if algorithm_of(load_config(whole).config).learn.corrections:
        with pytest.raises(ConfigError, match=rf"of rl_compat {system} weighs .* rollout_correction: off"):
            load_config(keys)
    else:
        load_config(keys)
    load_config({**keys, "rollout_correction": "off"})
    with pytest.raises(ConfigError, match="rollout_correction mask weighs"):
        load_config({**keys, "rollout_correction": "mask"})
