"""A rank that learns from answers: its gradient is the formula's, however the batch is cut."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raytune.losses.kl import KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.policy import PolicyRule
from raytune.losses.sequences import Aggregation
from raytune.stages.interfaces import PolicySample
from raytune.stages.policy_loss import LearnRule
from raytune.stages.policy_plan import Cut
from raytune.stages.policy_rank import PolicyRank
from raytune.stages.samples import Group
from tests.helpers.answers import random_groups, samples_of, share_out
from tests.helpers.runs import run_config

CPU = torch.device("cpu")
Grads = dict[str, Tensor]


def started(folder: Path, rule: LearnRule, **keys: Any) -> PolicyRank:
    keys = {"max_grad_norm": 0, "freeze_trainable_layers": 1, **keys}
    rank = PolicyRank(run_config(folder, **keys), rule, rank=0, world_size=1, device=CPU)
    rank.build(None)
    rank.start(total_steps=10, longest=64, checkpoint=None)
    # A new adapter adds nothing, so a wrong one would not be noticed.
    torch.manual_seed(3)
    for name, param in rank.model.named_parameters():
        if "lora_B" in name or "v_head" in name:
            torch.nn.init.normal_(param, std=0.05)
    return rank


def catch_gradients(rank: PolicyRank, *, moves: bool = False) -> list[Grads]:
    """Let steps move the weights as `move_on` does, or not at all; returns the list that their gradients will be in."""
    caught: list[Grads] = []

    def catch() -> None:
        caught.append({n: p.grad.clone() for n, p in rank.model.named_parameters() if p.grad is not None})
        if moves:
            move_on(rank.model)

    rank.engine.optimizer.step = catch  # type: ignore[method-assign]
    return caught


def move_on(model: torch.nn.Module) -> None:
    """A step of an optimizer that asks for no gradient."""
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.mul_(1.1)


def assert_same(found: Grads, expected: Grads) -> None:
    assert found.keys() == expected.keys()
    assert any(float(grad.abs().max()) > 1e-4 for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-6, msg=name)


def row_logprobs(model: Any, group: Group, place: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and hidden states [T, D] of one answer, alone, its environment's tokens among them."""
    answer = group.completions[place]
    ids = torch.tensor([[*group.prompt.ids.tolist(), *answer.ids.tolist()]])
    output = model(input_ids=ids, output_hidden_states=True)
    table = torch.log_softmax(output.logits[0, -len(answer.ids) - 1 : -1] / group.sampling.temperature, dim=-1)
    logprobs = table.gather(1, torch.tensor(answer.ids, dtype=torch.long)[:, None])[:, 0]
    return logprobs, -(table.exp() * table).sum(-1), output.hidden_states[-1][0, -len(answer.ids) - 1 : -1]


def formula(
    folder: Path,
    groups: Sequence[Group],
    samples: Sequence[PolicySample],
    *,
    steps: int = 0,
    aggregation: Aggregation = "token",
) -> Grads:
    """PPO's loss `steps` moves after the answers were looked at, a k3 divergence from the base, an entropy bonus.

    Row by row. Averaged over all tokens that the policy produced, over the answers' means, or over their sums by 16.
    """
    before, model = (started(folder, RULE).model for _ in range(2))
    for each in (before, model):
        each.set_attn_implementation("eager")
    for _ in range(steps):
        move_on(model)
    masks = [torch.from_numpy(groups[sample.payload].completions[sample.place].mask) for sample in samples]
    num_tokens = sum(int(mask.sum()) for mask in masks)
    for sample, mask in zip(samples, masks, strict=True):
        group = groups[sample.payload]
        with torch.no_grad(), model.disable_adapter():
            base, _, _ = row_logprobs(model, group, sample.place)
        with torch.no_grad():
            old, _, _ = row_logprobs(before, group, sample.place)
        logprobs, entropies, _ = row_logprobs(model, group, sample.place)
        ratio, advantage = (logprobs - old).exp(), torch.as_tensor(sample.advantage)
        clipped = torch.minimum(ratio * advantage, ratio.clamp(1 - LOW, 1 + HIGH) * advantage)
        gap = base - logprobs
        loss = -clipped + 0.05 * (gap.exp() - 1 - gap) - 0.01 * entropies
        divisors = {"token": num_tokens, "sequence": int(mask.sum()) * len(samples), "fixed": 16 * len(samples)}
        (loss[mask].sum() / divisors[aggregation]).backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


LOW, HIGH = 0.01, 0.02
RULE = LearnRule(
    policy=PolicyRule(clip_low=LOW, clip_high=HIGH, entropy_coef=0.01), kl=KLRule(coef=0.05), fixed_length=16
)


@pytest.mark.parametrize(
    "cut",
    [
        Cut(micro_rows=64),
        Cut(micro_rows=1),
        Cut(micro_rows=3),
        Cut(max_tokens=100),
        Cut(max_tokens=4000),
        Cut(max_tokens=100, joined=False, fixed_tokens=50),
    ],
    ids=str,
)
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
def test_the_gradients_are_those_of_the_formula_however_the_batch_is_cut(tmp_path, cut, aggregation):
    groups = random_groups(4, 4, temperature=0.8, masked=True)
    # Advantages of whole answers and of tokens.
    samples = [*samples_of(groups)[::2], *samples_of(groups, per_token=True)[1::2]]
    rank = started(tmp_path, replace(RULE, aggregation=aggregation))
    rank.joined = cut.joined
    caught = catch_gradients(rank, moves=True)
    sums = rank.update(1, share_out(groups, samples, replace(cut, epochs=2))[0])
    assert sums.count == 2 * sum(int(a.mask.sum()) for g in groups for a in g.completions)
    assert min(sums.sums["clip_low"], sums.sums["clip_high"]) > 0
    first, second = caught
    assert_same(first, formula(tmp_path, groups, samples, aggregation=aggregation))
    assert_same(second, formula(tmp_path, groups, samples, steps=1, aggregation=aggregation))


@pytest.mark.parametrize("epochs", [1, 2])
def test_each_mini_batch_has_the_gradient_of_its_own_rows(tmp_path, epochs):
    groups = random_groups(3, 4)
    samples = samples_of(groups)
    (share,) = share_out(groups, samples, Cut(minibatches=3, epochs=epochs, max_tokens=200))
    assert len(share.visits) == 3 * epochs
    assert sorted(share.visits[:3]) == sorted(share.visits[-3:]) == [0, 1, 2]
    rank = started(tmp_path, RULE)
    caught = catch_gradients(rank, moves=True)
    rank.update(1, share)
    for steps, (grads, visit) in enumerate(zip(caught, share.visits, strict=True)):
        rows = [share.numbers[place] for part in share.micro[visit] for place in part]
        assert len(rows) == share.num_sequences[visit]
        assert_same(grads, formula(tmp_path, groups, [samples[row] for row in rows], steps=steps))


def test_a_prompt_is_computed_once_for_its_answers(tmp_path):
    groups = random_groups(2, 5)
    rank = started(tmp_path, RULE)
    ((micro,),) = rank._micros(share_out(groups, samples_of(groups), Cut(max_tokens=4000))[0])
    answers = sum(len(a.ids) for g in groups for a in g.completions)
    # Each answer is predicted from a last token of the prompt of its own.
    assert micro.batch.lengths == [answers + 10 + sum(len(g.prompt.ids) - 1 for g in groups)]
    assert micro.num_tokens == answers + 5 * sum(len(g.prompt.ids) for g in groups)


def test_with_one_step_the_old_logprobs_need_no_pass_of_their_own(tmp_path):
    groups = random_groups(3, 3)
    samples = samples_of(groups)
    rule = LearnRule(corrections=(Correction("token", "truncate", high=1.2),), aggregation="sequence")
    (share,) = share_out(groups, samples, Cut(max_tokens=300))
    found, passes = [], []
    for asked in (False, True):
        rank = started(tmp_path, rule)
        caught = catch_gradients(rank)
        calls: list[int] = []
        rank.model.get_base_model().register_forward_hook(lambda *_, calls=calls: calls.append(1))
        given = share
        if asked:
            numbers = rank.values(share)
            told = tuple(replace(s, numbers=n) for s, n in zip(share.samples, numbers, strict=True))
            given = replace(share, samples=told, known=True)
        rank.update(1, given)
        found.append(caught[0])
        passes.append(len(calls))
    # One pass more is the reference's, over some of the answers, for the log.
    assert passes[1] - 1 == 2 * (passes[0] - 1) == 2 * len(share.micro[0])
    assert_same(found[0], found[1])


def test_the_divergence_is_told_by_some_answers_where_no_term_asks_for_it(tmp_path):
    groups = random_groups(3, 8)
    rank = started(tmp_path, LearnRule())
    catch_gradients(rank)
    (share,) = share_out(groups, samples_of(groups), Cut(max_tokens=3000))
    sums = rank.update(1, share)
    rank.model.set_attn_implementation("eager")
    gaps = []
    for number in share.micro[0][0][::8]:
        sample = share.samples[number]
        with torch.no_grad(), rank.model.disable_adapter():
            base, _, _ = row_logprobs(rank.model, sample.payload, sample.place)
        gaps.append(base - torch.from_numpy(sample.payload.completions[sample.place].logprobs))
    gap = torch.cat(gaps).double()
    assert len(gaps) == 3
    # k3 of Schulman's note, for draws of the policy.
    assert sums.sums["kl"] / sums.count == pytest.approx(float((gap.exp() - 1 - gap).mean()), rel=1e-4)


@pytest.mark.parametrize("fresh", [True, False])
def test_no_divergence_is_told_of_a_policy_that_goes_on_with_an_adapter(tmp_path, fresh):
    first = tmp_path / "first"
    first.mkdir()
    started(tmp_path, LearnRule()).save(first, with_state=False)
    groups = random_groups(2, 2)
    (share,) = share_out(groups, samples_of(groups), Cut(max_tokens=3000))
    rank = started(tmp_path, LearnRule(), adapter_name_or_path=str(first), create_new_adapter=fresh)
    # Asked at the start alone: the folder may be on a hub, and may move.
    shutil.rmtree(first)
    # Without the adapter it goes on with, the policy is an earlier model than the one that the run began with.
    assert ("kl" in rank.update(1, share).sums) is fresh


def test_groups_of_equal_rewards_change_no_weight(tmp_path):
    groups = random_groups(2, 4)
    samples = [PolicySample(s.payload, s.place, s.length, 0.0) for s in samples_of(groups)]
    rank = started(tmp_path, LearnRule(), finetuning_type="full", learning_rate=0.1)
    before = {name: param.detach().clone() for name, param in rank.model.named_parameters()}
    sums = rank.update(1, share_out(groups, samples, Cut(minibatches=2, epochs=2))[0])
    assert (sums.grad_norm, sums.loss) == (0.0, 0.0)
    for name, param in rank.model.named_parameters():
        assert torch.equal(param, before[name]), name


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_the_reference_is_the_model_that_the_run_started_from(tmp_path, method):
    groups = random_groups(2, 3, temperature=0.7, masked=True)
    rank = started(tmp_path, LearnRule(reference=True), finetuning_type=method, learning_rate=0.05)
    (share,) = share_out(groups, samples_of(groups), Cut(max_tokens=200))
    trains = [param.requires_grad for param in rank.model.parameters()]
    rank.update(1, share)
    found = rank.values(share)
    assert trains == [param.requires_grad for param in rank.model.parameters()]
    base = started(tmp_path, LearnRule(), finetuning_type="full").model
    for sample, numbers in zip(share.samples, found, strict=True):
        group = sample.payload
        mask = group.completions[sample.place].mask
        expected, _, _ = row_logprobs(base, group, sample.place)
        now, _, _ = row_logprobs(rank.model.eval(), group, sample.place)
        assert numbers.reference is not None
        np.testing.assert_allclose(numbers.reference, expected.detach().numpy() * mask, atol=1e-5)
        np.testing.assert_allclose(numbers.logprobs, now.detach().numpy() * mask, atol=1e-5)
        assert numbers.values is None
        assert np.abs(numbers.logprobs - numbers.reference).max() > 1e-4


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"finetuning_type": "full"},
        {"finetuning_type": "freeze"},
        {"finetuning_type": "full", "resize_vocab": True, "add_tokens": "<new>,<newer>"},
        {"adapter_name_or_path": "first"},
        {"adapter_name_or_path": "first", "create_new_adapter": True},
    ],
    ids=str,
)
def test_a_policy_that_has_not_moved_is_its_own_reference(tmp_path, keys):
    first = tmp_path / "first"
    first.mkdir()
    other = started(tmp_path, LearnRule())
    other.save(first, with_state=False)
    if "adapter_name_or_path" in keys:
        keys = {**keys, "adapter_name_or_path": str(first)}
    groups = random_groups(2, 3, temperature=0.7, masked=True)
    (share,) = share_out(groups, samples_of(groups), Cut(max_tokens=200))
    rank = PolicyRank(
        run_config(tmp_path, freeze_trainable_layers=1, **keys),
        LearnRule(reference=True), rank=0, world_size=1, device=CPU,
    )  # fmt: skip
    rank.build(None)
    rank.start(total_steps=10, longest=64, checkpoint=None)
    for numbers in rank.values(share):
        assert numbers.reference is not None
        np.testing.assert_allclose(numbers.logprobs, numbers.reference, atol=1e-6)
    if "adapter_name_or_path" in keys:
        # It does not begin as the base.
        base = started(tmp_path, LearnRule(), finetuning_type="full").values(share)
        assert np.abs(base[0].logprobs - rank.values(share)[0].logprobs).max() > 1e-4


@pytest.mark.parametrize("role", ["actor_critic", "critic"])
def test_the_critic_reads_the_state_before_each_token_and_learns_from_returns(tmp_path, role):
    groups = random_groups(3, 3, masked=True)
    samples = samples_of(groups, returns=True)
    rule = LearnRule(role=role, value_coef=0.5, value_clip=None)
    (share,) = share_out(groups, samples, Cut(max_tokens=150))
    rank = started(tmp_path, rule, finetuning_type="full")
    caught = catch_gradients(rank)
    found = rank.values(share)
    rank.update(1, share)
    other = started(tmp_path, rule, finetuning_type="full")
    model, head = other.model, other.model.get_submodule("v_head").summary
    model.set_attn_implementation("eager")
    count = sum(int(a.mask.sum()) for g in groups for a in g.completions)
    for sample, numbers in zip(share.samples, found, strict=True):
        mask = torch.from_numpy(sample.payload.completions[sample.place].mask)
        logprobs, _, hidden = row_logprobs(model, sample.payload, sample.place)
        values = hidden @ head.weight[0] + head.bias
        assert numbers.values is not None
        np.testing.assert_allclose(numbers.values, (values * mask).detach().numpy(), atol=1e-5)
        error = (0.5 * (values - torch.from_numpy(sample.returns)) ** 2)[mask].sum()
        policy = -(sample.advantage * (logprobs - logprobs.detach()).exp())[mask].sum()
        loss = error if role == "critic" else policy + 0.5 * error
        (loss / count).backward()
    expected = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    if role == "critic":
        expected.pop("lm_head.weight", None)
    assert_same(caught[0], expected)


def test_metrics_are_sums_over_tokens(tmp_path):
    groups = random_groups(2, 3)
    samples = samples_of(groups)
    rank = started(tmp_path, LearnRule())
    catch_gradients(rank)
    sums = rank.update(1, share_out(groups, samples, Cut(max_tokens=100))[0])
    model = rank.model.eval()
    gaps, entropy = [], 0.0
    with torch.no_grad():
        for sample in samples:
            group = groups[sample.payload]
            logprobs, entropies, _ = row_logprobs(model, group, sample.place)
            gaps += (logprobs - torch.from_numpy(group.completions[sample.place].logprobs)).tolist()
            entropy += float(entropies.sum())
    assert sums.sums["mismatch_abs"] == pytest.approx(sum(map(abs, gaps)), rel=1e-4)
    assert sums.sums["mismatch_k3"] == pytest.approx(sum(math.exp(x) - 1 - x for x in gaps), rel=1e-3)
    assert sums.sums["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert sums.sums["ratio"] == sums.count == len(gaps)
    assert sums.num_tokens == sum(s.length for s in samples)


def test_weights_and_state_come_back(tmp_path):
    groups = random_groups(2, 2)
    rule = LearnRule(role="actor_critic")
    first = started(tmp_path, rule)
    (share,) = share_out(groups, samples_of(groups, returns=True), Cut())
    first.update(1, share)
    folder = tmp_path / "saved"
    folder.mkdir()
    first.save(folder, with_state=True)
    again = PolicyRank(first.cfg, rule, rank=0, world_size=1, device=CPU)
    again.build(folder)
    again.start(total_steps=10, longest=64, checkpoint=folder)
    for rank in (first, again):
        rank.update(2, share)
    other = dict(again.model.named_parameters())
    for name, param in first.model.named_parameters():
        assert torch.equal(param, other[name]), name
