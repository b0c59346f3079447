"""From keys to the rules of an algorithm, against the numbers of each method's paper."""

from typing import get_args

import pytest

from raytune.config.load import load_config
from raytune.errors import ConfigError
from raytune.losses.rl_compat import DIALECTS, System
from raytune.stages.algorithm import algorithm_of


@pytest.mark.parametrize("wanted", [True, False])
def test_whitened_rewards_are_the_estimators_matter(wanted: bool) -> None:
    keys = {"model_name_or_path": "m", "stage": "ppo", "ppo_whiten_rewards": wanted}
    assert algorithm_of(load_config(keys).config).estimator.whiten_rewards is wanted


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 20}], ids=str)
@pytest.mark.parametrize("system", get_args(System))
def test_truncated_draws_are_refused_wherever_ratios_to_the_rollouts_are_weighed(
    system: System, cut: dict[str, float]
) -> None:
    keys = {"model_name_or_path": "m", "stage": "grpo", "rl_compat": system, **cut}
    if DIALECTS[system].corrections:
        with pytest.raises(ConfigError, match=rf"of rl_compat {system} weighs .* rollout_correction: off"):
            load_config(keys)
    else:
        load_config(keys)
    load_config({**keys, "rollout_correction": "off"})
    with pytest.raises(ConfigError, match="rollout_correction mask weighs"):
        load_config({**keys, "rollout_correction": "mask"})
