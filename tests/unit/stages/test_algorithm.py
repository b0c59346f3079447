"""From keys to the rules of an algorithm, against the numbers of each method's paper."""

import json
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from raytune.config.load import load_config
from raytune.errors import ConfigError
from raytune.losses.policy import PolicyRule
from raytune.losses.rl_compat import System
from raytune.stages.algorithm import algorithm_of


class Rules(NamedTuple):
    """What a method's paper says. fine: estimator and coefficient of a divergence in the reward. bounds: of the ratio,
    as distances from 1."""

    advantage: str
    ratio: str
    clip: str
    bounds: tuple[float | None, float | None]
    loss: str
    fine: tuple[str, float] | None = None
    dynamic_sampling: bool = False


RECIPES = {
    # Shao et al. 2024, eq. 3, without its divergence: answers by their spread, the mean over answers' means.
    "grpo": Rules("group", "token", "ppo", (0.2, 0.2), "sequence"),
    # Liu et al. 2025: no spread, sums over a fixed length, no divergence.
    "dr_grpo": Rules("group_no_std", "token", "ppo", (0.2, 0.2), "fixed"),
    # Yu et al. 2025, section 4.1: clips at 0.2 and 0.28, the mean over all tokens, no divergence.
    "dapo": Rules("group", "token", "ppo", (0.2, 0.28), "token", dynamic_sampling=True),
    # Zheng et al. 2025, eq. 5 and section 5.1: an answer's ratio by its length, clips at 3e-4 and 4e-4.
    "gspo": Rules("group", "sequence", "ppo", (3e-4, 4e-4), "sequence"),
    # MiniMax 2025, section 3.1: weights are bounded from above alone, the mean over all tokens, no divergence.
    "cispo": Rules("group", "token", "cispo", (None, 2.0), "token"),
    # Ahmadian et al. 2024: the others' mean, log pi - log pi_ref off the reward.
    "rloo": Rules("rloo", "token", "ppo", (0.2, 0.2), "token", fine=("k1", 0.01)),
    # Hu 2025: the log ratio off each token's reward, no group, PPO's clip.
    "reinforce_pp": Rules("reinforce++", "token", "ppo", (0.2, 0.2), "token", fine=("k1", 0.01)),
    # Li et al. 2023: the likeliest answer's reward, the log ratio off the reward.
    "remax": Rules("remax", "token", "ppo", (0.2, 0.2), "token", fine=("k1", 0.01)),
}
FOLDER = Path(__file__).parents[3] / "configs" / "grpo"
TASKS = {"calculator", "smollm2_arithmetic"}


def test_every_recipe_is_in_the_table() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} - TASKS == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_method_of_its_paper(name: str) -> None:
    cfg, expected = load_config(FOLDER / f"{name}.yaml").config, RECIPES[name]
    made = algorithm_of(cfg)
    estimator, learn, policy = made.estimator, made.learn, made.learn.policy
    assert expected == Rules(
        estimator.kind,
        policy.ratio,
        policy.clip,
        (policy.clip_low, policy.clip_high),
        learn.aggregation,
        fine=(made.kl.estimator, estimator.kl_coef) if estimator.kl_coef else None,
        dynamic_sampling=cfg.rl.dynamic_sampling,
    )
    # No divergence in the loss, no dual clip, no entropy bonus, no correction, no critic, one pass over each answer.
    assert (learn.kl_in_loss, learn.reference) == (False, expected.fine is not None)
    assert (policy.dual_clip, policy.ratio_cap, policy.entropy_coef, learn.corrections) == (None, None, 0.0, ())
    assert (learn.role, made.critic, cfg.rl.ppo_epochs, cfg.rl.num_mini_batches) == ("policy", None, 1, 1)
    assert (estimator.gamma, estimator.group.ddof, estimator.group.eps, estimator.whiten.ddof) == (1.0, 1, 1e-6, 1)
    assert learn.fixed_length == cfg.sampling.max_new_tokens
    assert json.loads(json.dumps(made.numbers()))["estimator"]["group"]["eps"] == 1e-6


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


@pytest.mark.parametrize("system", get_args(System))
def test_the_ratio_of_a_token_is_had_wherever_it_is_asked_for(system: System) -> None:
    keys = {"model_name_or_path": "m", "stage": "grpo", "advantage": "rloo", "rl_compat": system}
    asked = algorithm_of(load_config({**keys, "ratio_level": "token"}).config)
    assert asked.learn.policy.ratio == "token"
    # Without the key the run's header and algorithm.json still say which it is.
    left = algorithm_of(load_config(keys).config)
    expected = "sequence_product" if system == "trl" else "token"
    assert f"ratio {expected}," in left.summary()
    assert left.numbers()["learn"]["policy"]["ratio"] == expected


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
