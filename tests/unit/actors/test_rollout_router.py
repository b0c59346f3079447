"""What a router makes of replicas that fail or are at work, with none that is real."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from actors import stacks
from actors.fleet import State
from actors.rollout import RolloutRouter
from actors.rollout_watch import Watch
from raytune.stages.samples import Prompt, Sampling

PROMPT = Prompt(0, 0, np.array([1, 5], np.int32))


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A router of one replica that does nothing yet, with its watch not begun."""
    monkeypatch.setattr(stacks, "register", lambda what: None)
    made: Any = RolloutRouter(pickle.dumps([None]))
    made._replicas = [SimpleNamespace(generate=SimpleNamespace(remote=lambda *_: None))]
    return made


@pytest.mark.parametrize("state", list(State))
def test_what_a_dead_process_had_does_not_disturb_the_one_that_replaces_it(router: Any, state: State) -> None:
    """Of many prompts the last may hear of the death when the replica is on its way back."""

    async def lost(ref: object, seconds: float) -> None:
        raise RayActorError()

    async def attempt() -> tuple[object, bool]:
        wake = asyncio.Event()
        router._watches = [SimpleNamespace(unless_lost=lost, wake=wake)]
        router.fleet.members[0].state = state
        return await router._attempt(0, PROMPT, Sampling(), 2), wake.is_set()

    found, woken = asyncio.run(attempt())
    assert isinstance(found, str)
    assert woken
    # It is only asked at once how it is; whether it is dead is for its watch to say.
    assert router.fleet.state(0) is (State.SUSPECT if state is State.HEALTHY else state)


def test_a_router_rests_when_no_engine_is_being_built(router: Any) -> None:
    async def scenario() -> None:
        watch = Watch(router, 0, None)
        router._watches = [watch]
        begun, finish = asyncio.Event(), asyncio.Event()

        async def build() -> None:
            begun.set()
            await finish.wait()

        building = asyncio.create_task(watch._at_work(build))
        await begun.wait()
        resting = asyncio.create_task(router.rest(True))
        await asyncio.sleep(0.2)
        assert not resting.done()
        finish.set()
        await asyncio.wait_for(asyncio.gather(resting, building), 10)
        # What would begin while it rests waits for the next turn.
        begun.clear()
        later = asyncio.create_task(watch._at_work(build))
        await asyncio.wait_for(router.rest(True), 10)
        assert not begun.is_set()
        await router.rest(False)
        await asyncio.wait_for(later, 10)
        assert begun.is_set()

    asyncio.run(scenario())
