"""Environments in a loop of their own: what one of them does costs nobody else more than it has to."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from raytune.stages.environment import Environment, Reply, Unanswered
from raytune.stages.environment_loop import Environments
from raytune.stages.samples import Ids, Prompt

PROMPT = Prompt(0, 0, np.array([1, 5], np.int32))
LOST = "was lost: an environment ended their loop, or blocked it for {} s"
NO_IDS = np.zeros(0, np.int32)


class Acts:
    """Does in its step what it was made with."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    async def reset(self, prompt: Prompt) -> None: ...

    async def step(self, text: str, ids: Ids) -> Reply:
        found = self.act()
        return await found if asyncio.iscoroutine(found) else Reply(text, done=True)


async def talk(environments: Environments) -> str:
    """What an environment made of one step says, or why it does not."""
    environment: Environment = environments.new()
    try:
        await environment.reset(PROMPT)
        return (await environment.step("fine", NO_IDS)).text
    except Unanswered as why:
        return str(why)


def loops() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "environments"}


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_step_that_hangs_is_ended_and_its_neighbour_is_not() -> None:
    acts = iter([lambda: asyncio.sleep(60), lambda: None])
    environments = Environments(lambda: Acts(next(acts)), 3.0)

    async def both() -> list[str]:
        return list(await asyncio.gather(talk(environments), talk(environments)))

    assert asyncio.run(both()) == ["took longer than 3 s", "fine"]


def test_one_that_blocks_for_good_costs_those_beside_it_and_later_ones_have_another_loop(
    released: threading.Event,
) -> None:
    acts = iter([released.wait, lambda: None, lambda: None])
    before = loops()
    environments = Environments(lambda: Acts(next(acts)), 3.0)
    (old,) = loops() - before

    async def some() -> list[str]:
        beside = await asyncio.gather(talk(environments), talk(environments))
        return [*beside, await talk(environments)]

    assert asyncio.run(some()) == [LOST.format(3), LOST.format(3), "fine"]
    # The old one ends when it moves again.
    assert old.is_alive()
    released.set()
    old.join(20)
    assert not old.is_alive()


def test_those_that_wait_for_others_lose_no_time_of_theirs() -> None:
    """Eight that block for 0.5 s each, one after the other, with a limit of 3 s."""
    environments = Environments(lambda: Acts(lambda: time.sleep(0.5)), 3.0)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(talk(environments) for _ in range(8)))

    assert asyncio.run(all_of_them()) == ["fine"] * 8


class Leaves:
    """Leaves by sys.exit as soon as it is made."""

    def __init__(self) -> None:
        sys.exit("no key")

    async def reset(self, prompt: Prompt) -> None: ...

    async def step(self, text: str, ids: Ids) -> Reply:
        return Reply()


def cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Leaves, "raised SystemExit: no key"),
        (lambda: Acts(lambda: sys.exit(3)), "raised SystemExit: 3"),
        (lambda: Acts(cancelled), "raised CancelledError"),
    ],
)
def test_one_that_leaves_ends_its_own_answer(kind: Callable[[], Environment], why: str) -> None:
    kinds = iter([kind, lambda: Acts(lambda: None)])
    environments = Environments(lambda: next(kinds)(), 20.0)

    async def both() -> list[str]:
        return list(await asyncio.gather(talk(environments), talk(environments)))

    assert asyncio.run(both()) == [why, "fine"]


def test_a_loop_that_was_ended_is_replaced() -> None:
    def leave_later() -> Any:
        asyncio.get_running_loop().call_soon(sys.exit, 1)
        return asyncio.sleep(60)

    acts = iter([leave_later, lambda: None])
    environments = Environments(lambda: Acts(next(acts)), 20.0)

    async def one_by_one() -> list[str]:
        return [await talk(environments), await talk(environments)]

    assert asyncio.run(one_by_one()) == [LOST.format(20), "fine"]
