import math
from typing import Any

import pytest
import torch

from raytune.config.optim import OptimConfig
from raytune.engine.optim import OPTIMIZERS, build_optimizer, decay_groups
from raytune.engine.schedule import build_schedule, warmup_steps
from raytune.errors import ConfigError


def rates(total: int, **keys: Any) -> list[float]:
    model = torch.nn.Linear(2, 2)
    cfg = OptimConfig(learning_rate=1.0, **keys)
    optimizer = build_optimizer(model, cfg)
    schedule = build_schedule(optimizer, cfg, total_steps=total)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_follows_its_formula():
    expected = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates(8, lr_scheduler_type="cosine") == pytest.approx(expected)


def test_linear_warms_up_and_decays():
    assert rates(6, lr_scheduler_type="linear", warmup_steps=2) == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])


def test_warmup_stable_decay_is_stable_for_a_third_by_default():
    seen = rates(12, lr_scheduler_type="warmup_stable_decay", warmup_steps=3)
    assert seen[3:6] == pytest.approx([1.0, 1.0, 1.0])
    assert seen[7] < 1.0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"warmup_ratio": 0.1}, 10),
        ({"warmup_ratio": 0.101}, 11),
        ({"warmup_steps": 7, "warmup_ratio": 0.5}, 7),
        ({"warmup_steps": 0.25}, 25),
        ({}, 0),
    ],
)
def test_warmup_by_steps_share_or_ratio(keys, expected):
    assert warmup_steps(OptimConfig(**keys), 100) == expected


def test_vectors_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    groups = decay_groups(model.named_parameters(), weight_decay=0.1)
    assert [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, [(3, 3)]),
        (0.0, [(3,), (3,), (3,)]),
    ]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_name_takes_a_step_downhill(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = build_optimizer(model, OptimConfig(optim=name, learning_rate=0.01))
    x = torch.ones(1, 4)
    before = model(x).pow(2).sum()
    before.backward()
    optimizer.step()
    assert model(x).pow(2).sum() < before


def test_optim_args_reach_the_optimizer_and_nonsense_is_refused():
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimConfig(optim="sgd", optim_args="momentum=0.9, nesterov=true"))
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
    with pytest.raises(ConfigError, match="momentum"):
        build_optimizer(model, OptimConfig(optim="sgd", optim_args="momentum"))
