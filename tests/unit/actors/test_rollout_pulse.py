"""Alive is what answers or computes, not what does neither."""

import asyncio
import subprocess
import sys
from typing import Any

import psutil
import pytest

from actors import rollout_pulse
from actors.rollout_pulse import Pulse
from raytune.errors import ReplicaLostError


class Core:
    """An engine whose core answers after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked, self.version = seconds, 0, "7"

    async def get_weight_version(self) -> str:
        self.asked += 1
        version = self.version
        await asyncio.sleep(self.seconds)
        return version


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Processor time that the core, or each of two workers, uses between two looks; short looks."""
    used = {"more": 0.0, "more of another": 0.0, "polling": 0.0, "workers": 1}
    spent = {1: 0.0, 2: 0.0}
    polled = 0.0

    def look(_: object) -> dict[int, tuple[float, float]]:
        nonlocal polled
        spent[1] += used["more"]
        spent[2] += used["more of another"]
        polled += used["polling"]
        return {pid: (spent[pid], spent[pid] + polled) for pid in range(1, int(used["workers"]) + 1)}

    monkeypatch.setattr(rollout_pulse, "processor_seconds", look)
    monkeypatch.setattr(rollout_pulse, "computing", list)
    monkeypatch.setattr(rollout_pulse, "_PATIENCE", 0.01)
    monkeypatch.setattr(rollout_pulse, "_LOOK", 0.02)
    return used


async def looks(pulse: Pulse, count: int) -> list[str | None]:
    return [await pulse.version() for _ in range(count)]


def pulse_of(core: Any, busy: float = 60.0) -> Pulse:
    return Pulse(core, busy)


def test_an_answer_is_the_version(work: dict[str, float]) -> None:
    assert asyncio.run(looks(pulse_of(Core(0.0)), 3)) == ["7"] * 3


def test_a_core_that_computes_is_alive_and_is_asked_once(work: dict[str, float]) -> None:
    work["more"] = 0.5
    core = Core(0.2)
    found = asyncio.run(looks(pulse_of(core), 8))
    assert found[0] is None
    assert "7" in found
    assert core.asked <= 2


def test_an_answer_that_came_between_two_looks_is_not_told_as_if_it_were_new(work: dict[str, float]) -> None:
    work["more"] = 0.5
    core = Core(0.2)

    async def ask() -> str | None:
        pulse = pulse_of(core)
        assert await pulse.version() is None
        await asyncio.sleep(0.4)
        core.version, core.seconds = "8", 0.0
        return await pulse.version()

    assert (asyncio.run(ask()), core.asked) == ("8", 2)


def test_a_frozen_core_is_lost_at_the_second_look(work: dict[str, float]) -> None:
    async def ask() -> None:
        pulse = pulse_of(Core(60.0))
        assert await pulse.version() is None
        with pytest.raises(ReplicaLostError, match="has not answered"):
            await pulse.version()

    asyncio.run(ask())


def test_a_worker_that_waits_for_a_frozen_one_does_not_make_up_for_it(work: dict[str, float]) -> None:
    work |= {"more": 0.5, "workers": 2}
    with pytest.raises(ReplicaLostError, match="has not answered"):
        asyncio.run(looks(pulse_of(Core(60.0)), 3))
    work["more of another"] = 0.5
    assert asyncio.run(looks(pulse_of(Core(60.0)), 3)) == [None] * 3


def test_workers_that_only_poll_wait_for_a_frozen_core(work: dict[str, float]) -> None:
    work |= {"polling": 0.02, "workers": 2}
    with pytest.raises(ReplicaLostError, match="has not answered"):
        asyncio.run(looks(pulse_of(Core(60.0)), 3))


def test_a_worker_that_has_ended_is_noticed_though_the_core_answers(
    work: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [psutil.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    monkeypatch.setattr(rollout_pulse, "computing", lambda: workers)

    async def ask() -> None:
        pulse = pulse_of(Core(0.0))
        assert await pulse.version() == "7"
        workers[1].kill()
        await asyncio.sleep(0.2)
        with pytest.raises(ReplicaLostError, match="has ended"):
            await pulse.version()

    try:
        asyncio.run(ask())
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(timeout=10)


def test_a_core_that_computes_for_ever_is_lost_in_the_end(work: dict[str, float]) -> None:
    work["more"] = 0.5

    async def ask() -> None:
        pulse = pulse_of(Core(60.0), busy=0.1)
        with pytest.raises(ReplicaLostError, match="has not answered"):
            await looks(pulse, 20)

    asyncio.run(ask())


def test_several_may_ask_at_once(work: dict[str, float]) -> None:
    async def ask() -> list[str | None]:
        pulse = pulse_of(Core(0.015))
        return list(await asyncio.gather(*(pulse.version() for _ in range(5))))

    assert asyncio.run(ask()) == ["7"] * 5
