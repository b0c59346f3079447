"""The gradient of a step does not depend on how its batch is cut: micro-batches, accumulation, ranks or packing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from raytune.data.collate import Batch, Row, collate, join
from raytune.losses.estimate import EstimatorRule, Outcomes, estimate_advantages
from raytune.losses.kl import KLRule
from raytune.losses.mismatch import Correction
from raytune.losses.policy import PolicyInputs, PolicyRule, policy_loss
from raytune.losses.reduce import MetricSums, means, merge
from raytune.losses.sequences import Aggregation, Sequences, normaliser, token_weights
from raytune.losses.tokens import score_tokens
from raytune.models.logprobs import label_logits
from raytune.types import IGNORE_INDEX
from tests.helpers.tiny import tiny_model

LENGTHS = (3, 9, 1, 5, 7, 2, 4, 6)
PROMPT = 4
KL = KLRule(coef=0.05, gradient="ratio")
CORRECTIONS = (Correction("sequence", "truncate", high=1.1),)
RULES: dict[str, tuple[Aggregation, PolicyRule]] = {
    "grpo": ("sequence", PolicyRule()),
    "dapo": ("token", PolicyRule(clip_high=0.28, dual_clip=3.0)),
    "dr_grpo": ("fixed", PolicyRule()),
    "gspo": ("sequence", PolicyRule(ratio="sequence", clip_low=0.05, clip_high=0.05)),
    "cispo": ("token", PolicyRule(clip="cispo", entropy_coef=0.01)),
}
CUTS = {
    "one by one": [[0], [1], [2], [3], [4], [5], [6], [7]],
    "pairs": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "uneven": [[5], [0, 7, 2, 1, 6], [3, 4]],
    "shuffled": [[7, 0, 3, 5, 1, 6, 4, 2]],
}


@dataclass(frozen=True)
class Experience:
    """What was known before the step, one entry a row; the arrays are as long as the row has labelled tokens."""

    rows: list[Row]
    old: list[torch.Tensor]
    reference: list[torch.Tensor]
    rollout: list[torch.Tensor]
    advantages: list[torch.Tensor]


@pytest.fixture(scope="module")
def experience() -> Experience:
    draw = np.random.default_rng(0)
    rows: list[Row] = []
    for length in LENGTHS:
        ids = draw.integers(3, 250, PROMPT + length)
        labels = np.concatenate([np.full(PROMPT, IGNORE_INDEX), ids[PROMPT:]])
        if length > 5:
            labels[PROMPT + 2 : PROMPT + 4] = IGNORE_INDEX  # a tool's result
        rows.append({"input_ids": ids, "labels": labels})
    counts = [int((row["labels"] != IGNORE_INDEX).sum()) for row in rows]
    model = tiny_model()
    with torch.no_grad():
        now = [logits_and_labels(model, collate([row], pad_id=2)) for row in rows]
        now = [score_tokens(*pair).logprobs for pair in now]
    mask = torch.zeros(len(rows), max(counts))
    for line, count in zip(mask, counts, strict=True):
        line[:count] = 1
    outcomes = Outcomes(torch.from_numpy(draw.choice([0.0, 0.5, 1.0], 8)), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), mask)
    each = estimate_advantages(outcomes, EstimatorRule("group")).advantages
    old, reference, rollout = ([x + noise(draw, x) for x in now] for _ in range(3))
    return Experience(rows, old, reference, rollout, chosen(each, mask))


def noise(draw: np.random.Generator, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(draw.normal(0, 0.15, len(like))).float()


def chosen(values: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    return [value[keep].float() for value, keep in zip(values, mask.bool(), strict=True)]


def logits_and_labels(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return label_logits(model, model.get_output_embeddings(), model.config, batch)


def answers_of(batch: Batch) -> Sequences:
    """Which answer each labelled token belongs to; a row holds one, or several that are numbered from 1."""
    index, count = [], 0
    for row, labels in enumerate(batch.labels):
        segments = torch.ones_like(labels) if batch.segment_ids is None else batch.segment_ids[row]
        index.append(segments[1:][labels[1:] != IGNORE_INDEX] - 1 + count)
        count += int(segments.max())
    return Sequences(torch.cat(index), count)


def micro_step(
    model: Any, data: Experience, part: Sequence[int], kind: str, scale: float, make: Callable[[list[Row]], Batch]
) -> MetricSums:
    """Forward and backward of one micro-batch, as an engine does them."""
    aggregation, rule = RULES[kind]
    batch = make([data.rows[i] for i in part])
    logits, labels = logits_and_labels(model, batch)
    sequences = answers_of(batch)
    scores = score_tokens(logits, labels, train_entropy=True)
    tokens = PolicyInputs(
        logprobs=scores.logprobs,
        old_logprobs=torch.cat([data.old[i] for i in part]),
        advantages=torch.cat([data.advantages[i] for i in part]),
        weights=token_weights(sequences, aggregation, fixed_length=9),
        sequences=sequences,
        ref_logprobs=torch.cat([data.reference[i] for i in part]),
        rollout_logprobs=torch.cat([data.rollout[i] for i in part]),
        entropies=scores.entropies,
    )
    sums = policy_loss(tokens, rule=rule, kl=KL, corrections=CORRECTIONS)
    (sums.loss * scale).backward()
    return sums


def padded(rows: list[Row]) -> Batch:
    return collate(rows, pad_id=2)


def packed(rows: list[Row]) -> Batch:
    return collate([join(rows)], pad_id=2)


def packed_in_two_rows(rows: list[Row]) -> Batch:
    return collate([join(part) for part in (rows[:3], rows[3:]) if part], pad_id=2)


def step(
    data: Experience,
    ranks: Sequence[Sequence[Sequence[int]]],
    kind: str,
    make: Callable[[list[Row]], Batch] = padded,
) -> tuple[torch.Tensor, MetricSums]:
    """Gradient and metrics of a step that several ranks share; gradients are averaged over ranks, as DDP does."""
    num_tokens = sum(len(part) for part in data.old)
    scale = len(ranks) / normaliser(RULES[kind][0], num_tokens=num_tokens, num_sequences=len(data.rows))
    gradients, sums = [], []
    for parts in ranks:
        model = tiny_model()
        sums += [micro_step(model, data, part, kind, scale, make) for part in parts]
        gradients.append(torch.cat([param.grad.flatten() for param in model.parameters()]))
    return torch.stack(gradients).mean(0), merge(sums)


def assert_same(got: tuple[torch.Tensor, MetricSums], want: tuple[torch.Tensor, MetricSums]) -> None:
    assert want[0].norm() > 1e-3
    assert float((got[0] - want[0]).norm() / want[0].norm()) < 1e-6
    assert got[1].loss.item() == pytest.approx(want[1].loss.item(), rel=1e-5, abs=1e-6)
    assert means(got[1]) == pytest.approx(means(want[1]), rel=1e-5, abs=1e-6)


WHOLE = [[list(range(8))]]


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("cut", CUTS)
def test_micro_batches(experience, kind, cut):
    assert_same(step(experience, [CUTS[cut]], kind), step(experience, WHOLE, kind))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("make", [packed, packed_in_two_rows])
@pytest.mark.parametrize("cut", ["uneven", "shuffled"])
def test_packing(experience, kind, make, cut):
    assert_same(step(experience, [CUTS[cut]], kind, make), step(experience, WHOLE, kind))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("ranks", [[[[0, 1, 2]], [[3], [4, 5, 6, 7]]], [[[4]], [[7, 0], [2, 1]], [[5, 6, 3]]]])
def test_ranks(experience, kind, ranks):
    assert_same(step(experience, ranks, kind), step(experience, WHOLE, kind))


def test_the_experience_exercises_clips_and_corrections(experience):
    shown = means(step(experience, WHOLE, "dapo")[1])
    assert min(shown["clip_low"] + shown["clip_high"], shown["correction_outside"], shown["kl"]) > 0


@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_groups_with_equal_rewards_leave_the_gradient_at_zero(experience, kind):
    aggregation, rule = RULES[kind]
    scores, groups = torch.full((8,), 0.7), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    advantages = estimate_advantages(Outcomes(scores, groups, torch.ones(8, 1)), EstimatorRule("group")).advantages
    model, batch = tiny_model(), padded(experience.rows)
    sequences = answers_of(batch)
    logprobs = score_tokens(*logits_and_labels(model, batch)).logprobs
    weights = token_weights(sequences, aggregation)
    each = sequences.spread(advantages[:, 0].float())
    policy_loss(PolicyInputs(logprobs, torch.cat(experience.old), each, weights, sequences), rule=rule).loss.backward()
    assert not any(param.grad.any() for param in model.parameters())
