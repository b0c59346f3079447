"""The way back after ranks were lost, and how long a run waits."""

from pathlib import Path
from typing import Any

from raytune.config.load import load_config
from raytune.launch_rl.learn import _rebuild
from raytune.launch_rl.rollouts import wait_deadline
from tests.helpers.runs import run_keys


class Part:
    """Notes what is asked of it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self._name, self._events = name, events
        self.workers: list[Any] = []

    def __getattr__(self, what: str) -> Any:
        return lambda *args: self._events.append(" ".join([self._name, what, *(str(a) for a in args if a != [])]))


def test_old_ranks_end_before_replicas_wake_and_new_ones_begin(tmp_path: Path) -> None:
    events: list[str] = []
    roles: Any = Part("roles", events)
    roles.policy, roles.critic, roles.weights = (Part(name, events) for name in ("policy", "critic", "weights"))
    turns: Any = Part("turns", events)
    _rebuild(roles, turns, Path("c"))
    assert events == [
        "policy kill", "critic kill", "turns begin_again", "policy rebuild c", "critic rebuild c/critic",
        "weights reopen", "policy relay_log",
    ]  # fmt: skip


def test_a_run_waits_for_a_second_replica_and_for_rewards_that_are_tried_again(tmp_path: Path) -> None:
    keys = run_keys(tmp_path, stage="grpo", reward_funcs="exact", rollout_timeout=100, rollout_start_timeout=50)
    # Twice a group, one start, and three attempts of twice the limit and ten seconds each.
    assert wait_deadline(load_config({**keys, "reward_time_limit": 5}).config) == 2 * 100 + 50 + 3 * (2 * 5 + 10)
