"""From scores to samples where the greedy answer is what others are compared with, against numbers worked by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from raytune.losses.estimate import EstimatorRule
from raytune.losses.kl import KLRule
from raytune.rewards.table import RewardTable
from raytune.stages import ppo
from raytune.stages.experience import group_experience, needs_tokens, teaches, token_experience
from raytune.stages.group_numbers import describe
from raytune.stages.interfaces import PolicyResult, PolicySample, TokenNumbers
from raytune.stages.samples import ScoredGroup
from raytune.stages.state import TrainState, load_state

NAN = math.nan
LOGPROBS = np.array([-1.0, -2.0, -1.0], np.float32)
REFERENCE = np.array([-1.5, -2.0, -2.0], np.float32)
"""k1 of the three tokens: 0.5, 0 and 1."""
REMAX = EstimatorRule("remax")


def group(number: int, *rewards: float, greedy: float | None) -> ScoredGroup:
    """Answers of three tokens, the second of which an environment put in."""
    size = len(rewards)
    table = RewardTable(("right",), (1.0,), (tuple(None if math.isnan(one) else one for one in rewards),))
    lengths, versions, finishes = (3,) * size, (4,) * size, ("stop",) * size
    return ScoredGroup(number, 0, table, rewards, lengths, 2, versions, finishes, number, 0.1, 0.1, greedy)


class Policy:
    """Says the same of every answer."""

    def __init__(self, reference: np.ndarray | None = REFERENCE) -> None:
        self.reference = reference

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        mask = np.array([True, False, True])
        return [TokenNumbers(LOGPROBS, mask, self.reference, None) for _ in samples]

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        raise AssertionError("nothing is learned here")

    def save(self, folder: object, *, with_state: bool) -> None:
        raise AssertionError("nothing is saved here")


def advantages(groups: Sequence[ScoredGroup], rule: EstimatorRule = REMAX) -> dict[tuple[int, int], list[float]]:
    made = token_experience(groups, rule, kl=KLRule(estimator="k1"), numbers_of=Policy().values)
    return {(one.payload, one.place): np.asarray(one.advantage).tolist() for one in made.samples}


def test_each_answer_is_compared_with_the_greedy_one_of_its_prompt() -> None:
    found = advantages([group(0, 1.0, 0.25, greedy=0.5), group(1, 0.0, greedy=0.75)])
    assert found == {(0, 0): [0.5, 0.0, 0.5], (0, 1): [-0.25, 0.0, -0.25], (1, 0): [-0.75, 0.0, -0.75]}


def test_without_a_divergence_or_a_discount_the_policy_is_not_asked_about_tokens() -> None:
    assert not needs_tokens(REMAX)
    assert needs_tokens(EstimatorRule("remax", gamma=0.9))
    made = group_experience([group(0, 1.0, 0.25, greedy=0.5), group(1, NAN, greedy=NAN)], REMAX).samples
    assert [(one.payload, one.place, one.advantage) for one in made] == [(0, 0, 0.5), (0, 1, -0.25)]


def test_a_divergence_is_taken_off_what_is_still_to_come_and_not_off_the_greedy_answer() -> None:
    # Of what is drawn: 1 - 0.1 * (0.5 + 1) - 0.5, then 1 - 0.1 * 1 - 0.5.
    found = advantages([group(0, 1.0, greedy=0.5)], EstimatorRule("remax", kl_coef=0.1))
    assert found[0, 0] == pytest.approx([0.35, 0.0, 0.4])


def test_answers_without_a_score_are_left_out() -> None:
    found = advantages([group(0, NAN, 1.0, greedy=0.0), group(1, NAN, NAN, greedy=NAN), group(2, 1.0, greedy=0.5)])
    assert found == {(0, 1): [1.0, 0.0, 1.0], (2, 0): [0.5, 0.0, 0.5]}


def test_a_group_without_a_greedy_answer_is_not_compared() -> None:
    with pytest.raises(ValueError, match="a group has none"):
        advantages([group(0, 1.0, greedy=0.0), group(1, 1.0, greedy=None)])


def test_rewards_on_another_scale_take_the_greedy_answers_with_them() -> None:
    rule = ppo.PPORule(REMAX, score_norm=True, target=None)
    made = ppo.build_experience(Policy(), rule, kl=KLRule(), memory={})([group(0, 1.0, 0.0, greedy=0.25)])
    spread = np.std([1.0, 0.0], ddof=1)
    found = [np.asarray(one.advantage)[[0, 2]].tolist() for one in made.samples]
    assert found[0] == pytest.approx([0.75 / spread] * 2, rel=1e-5)
    assert found[1] == pytest.approx([-0.25 / spread] * 2, rel=1e-5)


FINED = EstimatorRule("reinforce++", kl_coef=0.2)
K1 = KLRule(estimator="k1")


def learned(steps: Sequence[int], memory: dict[str, float]) -> list[list[float]]:
    """Advantages of some steps of ppo, whose rewards differ from step to step. Changes the memory."""
    build = ppo.build_experience(Policy(), ppo.PPORule(FINED, score_norm=True), kl=K1, memory=memory)
    made = [build([group(step, 1.0 + step, step * 0.5, 3.0, greedy=None)]) for step in steps]
    return [np.asarray(sample.advantage).tolist() for one in made for sample in one.samples]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_of_ppo_remembers_its_scores_and_its_coefficient(tmp_path: Path, stop: int) -> None:
    whole: dict[str, float] = {}
    at_once = learned(range(5), whole)
    before = TrainState()
    begun = learned(range(stop), before.learner)
    before.save(tmp_path)
    after = load_state(tmp_path).learner
    assert begun + learned(range(stop, 5), after) == at_once
    assert after == whole
    scores = np.array([score for step in range(5) for score in (1.0 + step, step * 0.5, 3.0)])
    # An answer strays by 1.5 nats, far less than 6: each of the five steps takes 0.2 * 3 / 10000 off.
    expected = {
        "score_count": 15.0,
        "score_mean": scores.mean(),
        "score_squares": ((scores - scores.mean()) ** 2).sum(),
        "kl_coef": 0.2 * (1 - 0.2 * 3 / 10_000) ** 5,
    }
    assert whole == pytest.approx(expected, rel=1e-12)


def test_the_coefficient_of_an_earlier_run_counts_where_it_follows_a_target() -> None:
    memory = {"kl_coef": 0.5}
    for target, coef in ((6.0, 0.5), (None, 0.2)):
        made = ppo.build_experience(Policy(), ppo.PPORule(FINED, target=target), kl=K1, memory=dict(memory))
        # k1 is 0.5 and 1 on the two tokens that were drawn.
        assert made([group(0, 1.0, 0.0, greedy=None)]).numbers() == pytest.approx({"kl": 0.75, "kl_coef": coef})


def test_a_run_that_goes_on_without_a_divergence_asks_for_no_reference() -> None:
    rule = ppo.PPORule(EstimatorRule("reinforce++"), target=None)
    made = ppo.build_experience(Policy(None), rule, kl=K1, memory={"kl_coef": 0.5})([group(0, 1.0, 0.0, greedy=None)])
    assert (len(made.samples), made.numbers()) == (2, {})


@pytest.mark.parametrize(
    ("rewards", "greedy", "expected"),
    [
        ((1.0, 1.0), 1.0, False),
        ((1.0, 1.0), 0.0, True),
        ((1.0, 0.0), 0.0, True),
        ((0.0,), 1.0, True),
        ((1.0,), 1.0, False),
        ((1.0, NAN), 1.0, False),
        ((NAN, NAN), NAN, False),
        ((1.0, 1.0), None, False),
    ],
)
def test_a_group_teaches_if_one_answer_differs_from_the_greedy_one(
    rewards: tuple[float, ...], greedy: float | None, expected: bool
) -> None:
    one = group(0, *rewards, greedy=greedy)
    assert teaches(one) is expected
    if greedy is not None:
        # What dynamic sampling keeps is what has an advantage.
        assert any(any(each) for each in advantages([one]).values()) is expected


def test_the_log_has_the_greedy_answers_apart_from_the_others() -> None:
    numbers = describe([group(0, 1.0, 0.0, greedy=0.75), group(1, 1.0, 1.0, greedy=0.25)], version=4)
    assert (numbers["reward"], numbers["reward_right"], numbers["reward_greedy"]) == (0.75, 0.75, 0.5)
    assert numbers["completion_length"] == 3.0
    unknown = describe([group(0, NAN, NAN, greedy=NAN), group(1, 1.0, 0.0, greedy=0.25)], version=4)
    assert (unknown["reward"], unknown["reward_greedy"], unknown["unscorable"]) == (0.5, 0.25, 2.0)
    assert "reward_greedy" not in describe([group(0, 1.0, 0.0, greedy=None)], version=4)


def test_groups_are_alike_that_differ_from_their_greedy_answer_neither() -> None:
    groups = [group(0, 1.0, greedy=1.0), group(1, 1.0, greedy=0.0), group(2, 0.0, 0.0, greedy=0.0)]
    assert describe(groups, version=4)["groups_alike"] == 2.0


def test_groups_are_alike_whatever_rounding_and_missing_scores_say() -> None:
    third = 0.1 + 0.2
    assert third != 0.3
    alike = [(1.0, NAN), (NAN, NAN), (NAN, 0.5, 0.5), (third, 0.3)]
    groups = [group(number, *rewards, greedy=None) for number, rewards in enumerate([*alike, (NAN, 0.5, 0.6)])]
    assert describe(groups, version=4)["groups_alike"] == 4.0
