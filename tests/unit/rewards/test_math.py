import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from trl.rewards import accuracy_reward

import raytune.rewards.math as rewards_math
from raytune.rewards.base import RewardUnavailable, Unscored
from raytune.rewards.math import MathReward


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(column="solution", seconds=3)
    yield reward
    reward.close_worker()


RIGHT = [
    (r"My answer is \boxed{\frac{1}{3}}", r"\frac{1}{3}"),
    ("so it is 0.5", "1/2"),
    ("The answer is 72.", "6 * 12 = 72 #### 72"),
    (r"We get $(x+1)^2$", "x^2+2x+1"),
    (r"$(1, 2)$", "(1,2)"),
    (r"\boxed{x=5}", "5"),
    (r"\boxed{1{,}000}", "1000"),
    (r"<think>\boxed{4}? No.</think>It is 5", "5"),
]
WRONG = [
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{3}"),
    ("no idea", "72"),
    ("", "72"),
    (r"\boxed{3}, or else \boxed{4}", "4"),
]


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_equal_results(reward: MathReward, answer: str, truth: str) -> None:
    assert reward([answer], solution=[truth]) == [1.0]


@pytest.mark.parametrize(("answer", "truth"), WRONG)
def test_other_results(reward: MathReward, answer: str, truth: str) -> None:
    assert reward([answer], solution=[truth]) == [0.0]


def test_trl_agrees_where_the_answer_is_latex(reward: MathReward) -> None:
    pairs = [(answer, truth) for answer, truth in RIGHT + WRONG if answer.endswith("}")]
    answers = [[{"role": "assistant", "content": answer}] for answer, _ in pairs]
    truths = [truth for _, truth in pairs]
    assert reward(answers, solution=truths) == accuracy_reward(answers, truths)


@pytest.mark.parametrize("truth", ["Paris", ""])
def test_a_right_answer_without_mathematics_is_a_failure(reward: MathReward, truth: str) -> None:
    (score,) = reward(["5"], solution=[truth])
    assert isinstance(score, Unscored)
    assert reward(["5"], solution=[None]) == [None]


def test_an_endless_comparison_is_wrong_after_the_limit_and_hurts_no_other_even_beside_the_main_thread() -> None:
    reward = MathReward(column="solution", seconds=1)
    found: list[float | None] = []
    answers = ["5", r"\boxed{9^{9^{9^{9}}}}", "5"]
    reward(["5"], solution=["5"])  # start it
    begun = time.monotonic()
    thread = threading.Thread(target=lambda: found.extend(reward(answers, solution=["5"] * 3)))
    thread.start()
    thread.join(60)
    reward.close_worker()
    assert found == [1.0, 0.0, 1.0]
    assert time.monotonic() - begun < 30


def test_many_threads_may_ask(reward: MathReward) -> None:
    found: dict[int, float | None] = {}

    def ask(number: int) -> None:
        found[number] = reward([str(number)], solution=[str(number % 2)])[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}


def test_a_killed_process_is_replaced() -> None:
    others = set(psutil.Process().children())
    reward = MathReward(column="solution")
    assert reward(["5"], solution=["5"]) == [1.0]
    (child,) = set(psutil.Process().children()) - others
    child.kill()
    child.wait(10)
    assert reward(["5"], solution=["5"]) == [1.0]
    reward.close_worker()


def test_a_process_that_does_not_start_says_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text("import not_installed_anywhere\n")
    monkeypatch.setattr(rewards_math, "WORKER", script)
    with pytest.raises(RewardUnavailable, match="No module named 'not_installed_anywhere'"):
        MathReward(column="solution")(["5"], solution=["5"])


def test_a_solution_is_what_the_row_says_and_not_how(reward: MathReward) -> None:
    truth = [{"role": "assistant", "content": r"It is \boxed{5}"}]
    (score,) = reward(["5"], solution=[truth])
    assert score is not None
    assert not math.isnan(score)
    assert score == 1.0
