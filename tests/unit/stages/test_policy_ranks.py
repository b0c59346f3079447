"""Two ranks learn what one does: their gradient is the one-rank gradient, which is the formula's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raytune.losses.kl import KLRule
from raytune.losses.policy import PolicyRule
from raytune.losses.sequences import Aggregation
from raytune.stages.policy_loss import LearnRule
from raytune.stages.policy_plan import Cut
from tests.helpers.answers import random_groups, samples_of, share_out
from tests.helpers.ranks import learn, learn_each, on_ranks
from tests.helpers.runs import run_config

RULE = LearnRule(
    role="actor_critic",
    policy=PolicyRule(clip_low=0.01, clip_high=0.02, entropy_coef=0.01),
    kl=KLRule(coef=0.05),
    fixed_length=16,
)
AGGREGATIONS: dict[tuple[str, str], Aggregation] = {
    ("ddp", "lora"): "token",
    ("ddp", "full"): "sequence",
    ("fsdp2", "lora"): "sequence",
    ("fsdp2", "full"): "fixed",
}
RUNS: list[tuple[dict[str, Any], LearnRule]] = [
    (
        {"finetuning_type": method, "max_grad_norm": 0, "engine": engine, "num_workers": 2},
        replace(RULE, aggregation=aggregation),
    )
    for (engine, method), aggregation in AGGREGATIONS.items()
]
# Five groups of three and a budget that gives one rank more micro-batches than the other has answers for.
GROUPS = random_groups(5, 3, masked=True)
SAMPLES = samples_of(GROUPS, returns=True)
SHARES = {
    count: share_out(GROUPS, SAMPLES, Cut(num_ranks=count, minibatches=2, epochs=2, max_tokens=70)) for count in (1, 2)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ranks")
    run_config(home)
    return home


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[Any]:
    """What each rank has of each run."""
    return on_ranks(folder, 2, learn_each, folder, RUNS, SHARES[2])


@pytest.mark.parametrize("run", range(len(RUNS)), ids=["-".join(kind) for kind in AGGREGATIONS])
def test_two_ranks_have_the_gradient_and_the_numbers_of_one(folder, two_ranks, run):
    assert sum(len(share.samples) for share in SHARES[2]) == len(SAMPLES)
    keys, rule = RUNS[run]
    alone, single, whole = learn(0, 1, folder, {**keys, "num_workers": 1, "engine": "auto"}, rule, SHARES[1])
    assert min(whole.sums["clip_low"], whole.sums["clip_high"]) > 0
    found = [rank[run] for rank in two_ranks]
    for grads, _, _ in found:
        assert len(grads) == len(alone) == 4
        for mine, expected in zip(grads, alone, strict=True):
            assert mine.keys() == expected.keys()
            for name, grad in expected.items():
                torch.testing.assert_close(mine[name], grad, rtol=1e-5, atol=1e-6, msg=name)
    of_answer = dict(zip(SHARES[1][0].numbers, single, strict=True))
    for share, (_, numbers, _) in zip(SHARES[2], found, strict=True):
        for number, told in zip(share.numbers, numbers, strict=True):
            alike = of_answer[number]
            pairs = [(told.logprobs, alike.logprobs), (told.reference, alike.reference), (told.values, alike.values)]
            for mine, expected in pairs:
                assert mine is not None
                assert expected is not None
                np.testing.assert_allclose(mine, expected, atol=1e-5)
    sums = [part for _, _, part in found]
    assert sum(part.count for part in sums) == whole.count
    assert sum(part.loss for part in sums) == pytest.approx(whole.loss, rel=1e-4, abs=1e-6)
    for name, value in whole.sums.items():
        assert sum(part.sums.get(name, 0.0) for part in sums) == pytest.approx(value, rel=1e-4, abs=1e-4), name
