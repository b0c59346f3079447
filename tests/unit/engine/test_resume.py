"""An engine that goes on from saved state with today's settings."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from raytune.config.optim import OptimConfig
from raytune.engine.base import Engine

BEFORE: dict[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.01, "lr_scheduler_type": "linear"}


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("raytune"), "propagate", True)
    caplog.set_level(logging.INFO, "raytune")


def engine(**keys: Any) -> Engine:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    return Engine(model, OptimConfig(**{**BEFORE, **keys}), total_steps=10, device=torch.device("cpu"))


def step(one: Engine) -> None:
    x = torch.tensor([[1.0, -2.0]])
    one.model(x).pow(2).sum().backward()
    one.optimizer_step()


def resumed(folder: Path, saved: Engine, **keys: Any) -> Engine:
    saved.save_state(folder)
    small = json.loads(json.dumps(saved.small_state()))
    after = engine(**keys)
    after.model.load_state_dict(saved.model.state_dict())
    after.load_state(folder)
    after.load_small_state(small)
    return after


def after_steps(count: int, **keys: Any) -> Engine:
    one = engine(**keys)
    for _ in range(count):
        step(one)
    return one


def weight(one: Engine) -> torch.Tensor:
    return next(one.model.parameters()).detach()


def test_unchanged_settings_give_the_same_bytes_and_no_word(tmp_path, caplog):
    whole = after_steps(4)
    one = resumed(tmp_path, after_steps(2))
    step(one)
    step(one)
    assert torch.equal(weight(one), weight(whole))
    assert caplog.messages == []


def test_todays_settings_count_and_are_said_aloud(tmp_path, caplog):
    changes = {"learning_rate": 0.5, "weight_decay": 0.2, "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 1e-3}
    saved = after_steps(2)
    one = resumed(tmp_path, saved, **changes)
    before = weight(one).clone()
    state = saved.optimizer.state[next(saved.model.parameters())]
    gradient = 2 * (before @ torch.tensor([[1.0], [-2.0]])) @ torch.tensor([[1.0, -2.0]])
    gradient *= min(1.0, 1.0 / float(gradient.norm()))
    # AdamW's formula, with the moments of the checkpoint and the settings of today.
    mean = 0.5 * state["exp_avg"] + 0.5 * gradient
    square = 0.6 * state["exp_avg_sq"] + 0.4 * gradient**2
    rate = 0.5 * 0.8  # linear decay over ten steps, after two
    update = (mean / (1 - 0.5**3)) / ((square / (1 - 0.6**3)).sqrt() + 1e-3)
    step(one)
    torch.testing.assert_close(weight(one), before * (1 - rate * 0.2) - rate * update, rtol=1e-5, atol=1e-6)
    assert "learning_rate was 0.1 when the checkpoint was saved, is now 0.5" in caplog.messages
    assert sorted(message.split()[0] for message in caplog.messages) == sorted(changes)


# Greedy doubles the rate at the first, good metric, then halves it at every bad one.
@pytest.mark.parametrize(("name", "metrics"), [("reduce_lr_on_plateau", (1.0, 2.0)), ("greedy", (1.0, 2.0, 3.0))])
def test_a_rate_that_followed_a_metric_is_scaled_with_the_learning_rate(tmp_path, name, metrics):
    keys = {"lr_scheduler_type": name, "lr_scheduler_kwargs": {"factor": 0.5, "patience": 0}}
    saved = after_steps(1, **keys)
    for metric in metrics:
        saved.metric_step(metric)
    reached = saved.optimizer.param_groups[0]["lr"]
    assert reached == pytest.approx(0.05)
    same = resumed(tmp_path / "same", saved, **keys)
    assert same.optimizer.param_groups[0]["lr"] == reached
    other = resumed(tmp_path / "other", saved, **keys, learning_rate=0.4)
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
