"""A policy group on a real Ray: two ranks read their groups from the object store and learn what one rank learns."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from actors import ranks
from actors.placement import make_plan
from actors.policy import PolicyGroup
from raytune.errors import PolicyLostError, TrainError
from raytune.losses.kl import KLRule
from raytune.stages.interfaces import PolicySample
from raytune.stages.policy_loss import LearnRule
from raytune.stages.policy_plan import Cut
from raytune.stages.policy_rank import PolicyRank
from raytune.stages.samples import Group
from tests.helpers.answers import random_groups, samples_of, share_out
from tests.helpers.runs import run_config

pytestmark = pytest.mark.usefixtures("ray_local")

RULE = LearnRule(kl=KLRule(coef=0.05), reference=True)
KEYS = {"learning_rate": 0.05, "cpus_per_worker": 1, "max_tokens_per_batch": 128}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[PolicyGroup]:
    cfg = run_config(tmp_path, num_workers=2, **KEYS)
    plan = make_plan("policy", num_ranks=2, cpus_per_rank=1, gpus_per_rank=0)
    placed = placement_group([bundle.resources() for bundle in plan.bundles])
    ray.get(placed.ready(), timeout=60)
    made = PolicyGroup(cfg, plan, placed, RULE, shared=True, epochs=2, minibatches=2)
    made.start_policy(made.build(None), total_steps=40, longest=64)
    yield made
    made.shutdown()
    remove_placement_group(placed)


def by_reference(groups: Sequence[Group], samples: Sequence[PolicySample]) -> list[PolicySample]:
    refs = [ray.put(group) for group in groups]
    return [PolicySample(refs[s.payload], s.place, s.length, s.advantage) for s in samples]


def test_two_ranks_over_the_object_store_learn_what_one_does(group, tmp_path):
    groups = random_groups(4, 4, masked=True)
    samples = samples_of(groups)
    sent = by_reference(groups, samples)
    result = group.update(1, sent)
    told = group.values(sent)

    alone = PolicyRank(run_config(tmp_path, **KEYS), RULE, rank=0, world_size=1, device=torch.device("cpu"))
    alone.build(None)
    alone.start(total_steps=40, longest=64, checkpoint=None)
    (share,) = share_out(groups, samples, Cut(epochs=2, minibatches=2, max_tokens=128), seed=(42, 1))
    sums = alone.update(1, share)
    assert result.loss == pytest.approx(sums.loss, rel=1e-4, abs=1e-6)
    assert result.grad_norm == pytest.approx(sums.grad_norm, rel=1e-4)
    assert result.num_tokens == sum(sample.length for sample in samples)
    for name, value in sums.sums.items():
        assert result.metrics[name] == pytest.approx(value / sums.count, rel=1e-3, abs=1e-5), name
    expected = dict(zip(share.numbers, alone.values(share), strict=True))
    for number, numbers in enumerate(told):
        np.testing.assert_allclose(numbers.logprobs, expected[number].logprobs, atol=1e-4)
        reference = expected[number].reference
        assert numbers.reference is not None
        assert reference is not None
        np.testing.assert_allclose(numbers.reference, reference, atol=1e-4)

    folder = tmp_path / "saved"
    folder.mkdir()
    group.save(folder, with_state=True)
    assert (folder / "adapter_model.safetensors").is_file()


@ray.remote(num_cpus=0)
def fails(text: str) -> None:
    raise RuntimeError(text)


@ray.remote(num_cpus=0)
def is_silent() -> None:
    time.sleep(60)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1234", PolicyLostError),
        ("mat1 and mat2 shapes cannot be multiplied", TrainError),
    ],
)
def test_ranks_that_lost_sight_of_a_silent_one_are_lost_with_it(text, kind, monkeypatch):
    monkeypatch.setattr(ranks, "_NODE_GRACE", 0.5)
    silent = is_silent.remote()
    with pytest.raises(TrainError, match=r"rank 0 stopped during 'update 3'") as caught:
        ranks.results_of([fails.remote(text), silent], "update 3", timeout=30, lost=PolicyLostError)
    assert type(caught.value) is kind
    ray.cancel(silent, force=True)
