"""The order of the phases, against the order in which memory must change hands."""

from pathlib import Path

import pytest

from raytune.errors import RolloutError
from raytune.stages.interfaces import PolicyResult
from raytune.stages.samples import Sampling
from raytune.stages.turns import Turns

HAND_OVER = ["offload optimizer", "wake weights", "publish {}", "offload weights", "wake kv_cache"]
LEARN = ["sleep", "onload"]


class Everybody:
    """All four sides; writes down what is asked of them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.waiting = 0

    def submit(self, prompts, sampling, group_size):
        self.said.append("submit")

    def wait(self, timeout):
        return []

    def pending(self):
        return self.waiting

    def update(self, step, samples):
        self.said.append("update")
        return PolicyResult(0.0, 0, 0.0, 0.0, {})

    def values(self, samples):
        self.said.append("values")
        return []

    def save(self, folder, *, with_state):
        self.said.append("save")

    def publish(self, version):
        self.said.append(f"publish {version}")
        return {"sync": 1.0}

    def sleep(self):
        self.said.append("sleep")

    def wake(self, part):
        self.said.append(f"wake {part}")

    def offload(self, *, weights):
        self.said.append("offload weights" if weights else "offload optimizer")

    def onload(self):
        self.said.append("onload")


def taking_turns() -> tuple[Everybody, Turns]:
    all_of_them = Everybody()
    sides = {"replicas": all_of_them, "ranks": all_of_them}
    return all_of_them, Turns(all_of_them, all_of_them, all_of_them, **sides)


def hand_over(version: int) -> list[str]:
    return [line.format(version) for line in HAND_OVER]


def test_a_step_wakes_weights_before_caches_and_never_has_both_sides_whole():
    everybody, turns = taking_turns()
    turns.weights.publish(0)
    turns.rollouts.submit([], Sampling(), 2)
    turns.policy.values([])
    turns.policy.update(1, [])
    laps = turns.weights.publish(1)
    turns.rollouts.submit([], Sampling(), 2)
    drawn_twice = [*hand_over(0), "submit", *LEARN, "values", "update", *hand_over(1), "submit"]
    assert everybody.said == drawn_twice
    assert laps["sync"] == 1.0
    assert laps["turns"] >= 0.0


def test_weights_that_sleep_lost_come_again_after_a_save():
    everybody, turns = taking_turns()
    turns.weights.publish(4)
    everybody.said.clear()
    turns.policy.save(Path("nowhere"), with_state=True)
    turns.rollouts.submit([], Sampling(), 2)
    assert everybody.said == [*LEARN, "save", *hand_over(4), "submit"]


def test_the_ranks_turn_does_not_begin_while_answers_are_drawn():
    everybody, turns = taking_turns()
    turns.weights.publish(0)
    everybody.waiting = 3
    with pytest.raises(RolloutError, match="3 prompts are being drawn"):
        turns.policy.update(1, [])
    assert "sleep" not in everybody.said
