"""Our losses against TRL's own loss functions, called on the same log-probabilities.

TRL's `_compute_loss` reads a trainer's settings off `self` and asks it for log-probs; a plain namespace answers both.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import nanstd

from raytune.losses.advantage import GroupRule, group_advantages
from raytune.losses.kl import KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.policy import PolicyInputs, PolicyRule, policy_loss
from raytune.losses.reduce import MetricSums, means
from raytune.losses.rl_compat import DIALECTS, kl_rule, policy_rule
from raytune.losses.sequences import Aggregation, Sequences, normaliser, token_weights

MASK = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
ADVANTAGES = torch.tensor([1.3, -0.8, 0.4], dtype=torch.float64)
MAX_LENGTH = 7
TRL = DIALECTS["trl"]


def drawn(seed: int, spread: float = 0.4) -> dict[str, torch.Tensor]:
    """Log-probs [3, 5]: of now, of old, of a reference; weights for the rollout and entropies."""
    draw = np.random.default_rng(seed)
    old = torch.from_numpy(draw.normal(-1.5, 0.5, MASK.shape))
    return {
        "now": (old + torch.from_numpy(draw.normal(0, spread, MASK.shape))).requires_grad_(),
        "old": old,
        "ref": old + torch.from_numpy(draw.normal(0, spread, MASK.shape)),
        "rollout_weight": torch.from_numpy(draw.uniform(0.5, 2, MASK.shape)),
        "entropy": torch.from_numpy(draw.uniform(0, 2, MASK.shape)),
    }


def trainer(data: dict[str, torch.Tensor], **settings: Any) -> Any:
    """What TRL's loss reads off its trainer."""
    given = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "max_completion_length": MAX_LENGTH,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
    } | settings
    arguments = {"delta": None, "use_bias_correction_kl": True, "steps_per_generation": 1}
    return SimpleNamespace(
        **{name: value for name, value in given.items() if name not in arguments},
        args=SimpleNamespace(**(arguments | {k: v for k, v in settings.items() if k in arguments})),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_args, **_more: (data["now"], data["entropy"], None),
    )


def theirs(data: dict[str, torch.Tensor], **settings: Any) -> tuple[float, torch.Tensor, dict[str, list[float]]]:
    """TRL's GRPO loss, its gradient by the log-probs [3, 5] and its metrics."""
    ids = torch.ones(3, 5, dtype=torch.int64)
    batch = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": MASK.long(),
        "advantages": ADVANTAGES,
        "old_per_token_logps": data["old"],
        "ref_per_token_logps": data["ref"],
        "importance_sampling_ratio": data["rollout_weight"],
        "num_items_in_batch": MASK.sum(),
    }
    fake = trainer(data, **settings)
    loss = GRPOTrainer._compute_loss(fake, None, batch)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(loss, data["now"])
    return loss.item(), slope, fake._metrics["train"]


def flat(data: dict[str, torch.Tensor], aggregation: Aggregation, **more: torch.Tensor) -> PolicyInputs:
    rows = torch.arange(3)[:, None].expand(MASK.shape)[MASK]
    sequences = Sequences(rows, 3)
    weights = token_weights(sequences, aggregation, fixed_length=MAX_LENGTH, dtype=torch.float64)
    return PolicyInputs(data["now"][MASK], data["old"][MASK], ADVANTAGES[rows], weights, sequences, **more)


def ours(
    data: dict[str, torch.Tensor], aggregation: Aggregation, rule: PolicyRule, kl: KLRule | None = None, **more: Any
) -> tuple[float, torch.Tensor, MetricSums]:
    sums = policy_loss(flat(data, aggregation, **more), rule=rule, kl=kl)
    loss = sums.loss / normaliser(aggregation, num_tokens=int(MASK.sum()), num_sequences=3)
    (slope,) = torch.autograd.grad(loss, data["now"])
    return loss.item(), slope, sums


def assert_equal(left: tuple[float, torch.Tensor, Any], right: tuple[float, torch.Tensor, Any]) -> None:
    assert left[0] == pytest.approx(right[0], rel=1e-10, abs=1e-12)
    assert torch.allclose(left[1], right[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "fixed"), ("bnpo", "token")]
)
@pytest.mark.parametrize("high", [0.2, 0.28])
def test_clipped_losses_and_aggregations(seed, loss_type, aggregation, high):
    data = drawn(seed)
    left = ours(data, aggregation, policy_rule(TRL, clip_low=0.2, clip_high=high))
    right = theirs(data, loss_type=loss_type, epsilon_high=high)
    assert_equal(left, right)
    shown, metrics = means(left[2]), right[2]
    assert shown["clip_low"] == pytest.approx(metrics["clip_ratio/low_mean"][0], abs=1e-6)
    assert shown["clip_high"] == pytest.approx(metrics["clip_ratio/high_mean"][0], abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (3e-4, 4e-4)])
def test_gspo(seed, low, high):
    rule = policy_rule(TRL, clip_low=low, clip_high=high, level="sequence")
    data = drawn(seed, spread=0.01 if high < 0.1 else 0.4)
    right = theirs(data, loss_type="grpo", importance_sampling_level="sequence", epsilon_low=low, epsilon_high=high)
    assert_equal(ours(data, "sequence", rule), right)


@pytest.mark.parametrize("seed", range(4))
def test_cispo_reads_its_upper_bound_as_it_is(seed):
    data = drawn(seed)
    rule = policy_rule(TRL, clip_low=0.2, clip_high=1.3, clip="cispo")
    assert_equal(ours(data, "token", rule), theirs(data, loss_type="cispo", epsilon_high=1.3))


@pytest.mark.parametrize("seed", range(4))
def test_delta_caps_the_ratio(seed):
    data = drawn(seed)
    rule = PolicyRule(ratio_cap=1.3, log_ratio_clamp=None)
    assert_equal(ours(data, "token", rule), theirs(data, loss_type="dapo", delta=1.3))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("corrected", [True, False])
def test_divergence_in_the_loss(seed, corrected):
    data = drawn(seed)
    kl = kl_rule(TRL, coef=0.04) if corrected else KLRule(coef=0.04, clamp_input=None)
    left = ours(data, "token", policy_rule(TRL, clip_low=0.2, clip_high=0.2), kl, ref_logprobs=data["ref"][MASK])
    right = theirs(data, loss_type="dapo", beta=0.04, use_bias_correction_kl=corrected)
    assert_equal(left, right)
    assert means(left[2])["kl"] == pytest.approx(right[2]["kl"][0])


@pytest.mark.parametrize("seed", range(4))
def test_divergence_in_the_loss_of_whole_answers_is_weighed_by_their_ratio(seed):
    data = drawn(seed)
    rule = policy_rule(TRL, clip_low=0.2, clip_high=0.2, level="sequence")
    left = ours(data, "sequence", rule, kl_rule(TRL, coef=0.04), ref_logprobs=data["ref"][MASK])
    assert_equal(left, theirs(data, loss_type="grpo", importance_sampling_level="sequence", beta=0.04))


@pytest.mark.parametrize("seed", range(4))
def test_weights_for_rollouts_of_another_engine(seed):
    # TRL takes the finished weights; we are given log-probs whose gap makes the same ones.
    data = drawn(seed)
    rollout = (data["old"] - data["rollout_weight"].log())[MASK]
    tokens = flat(data, "token", rollout_logprobs=rollout)
    sums = policy_loss(
        tokens, rule=PolicyRule(log_ratio_clamp=None), corrections=(Correction("token", "truncate", high=None),)
    )
    (slope,) = torch.autograd.grad(sums.loss / MASK.sum(), data["now"])
    right = theirs(data, loss_type="dapo", use_vllm=True)
    assert_equal((sums.loss.item() / int(MASK.sum()), slope, None), right)


@pytest.mark.parametrize("seed", range(4))
def test_rloo_uses_the_probability_ratio_of_whole_answers(seed):
    data = drawn(seed, spread=0.1)
    ids = torch.ones(3, 5, dtype=torch.int64)
    batch = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": MASK.long(),
        "advantages": ADVANTAGES,
        "old_logps": (data["old"] * MASK).sum(1),
    }
    loss = RLOOTrainer._compute_loss(trainer(data), None, batch)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(loss, data["now"])
    rule = policy_rule(TRL, clip_low=0.2, clip_high=0.2, level="product")
    assert_equal(ours(data, "sequence", rule), (loss.item(), slope, None))


@pytest.mark.parametrize("seed", range(4))
def test_group_advantages_with_unscorable_answers(seed):
    # TRL's arithmetic, in double, on its own nanstd
    draw = np.random.default_rng(seed)
    rewards = torch.from_numpy(draw.normal(size=(3, 6)))
    rewards[0, 2] = rewards[2, 0] = rewards[2, 5] = torch.nan
    centred = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    expected = torch.nan_to_num(centred / (nanstd(rewards, dim=1, keepdim=True) + 1e-4), nan=0.0)
    groups = torch.arange(3).repeat_interleave(6)
    assert torch.allclose(group_advantages("group", rewards.flatten(), groups, rule=TRL.group), expected.flatten())
    by_batch = torch.nan_to_num(centred / (nanstd(rewards) + 1e-4), nan=0.0)
    ours = group_advantages("group_batch_std", rewards.flatten(), groups, rule=GroupRule(eps=1e-4))
    assert torch.allclose(ours, by_batch.flatten())
