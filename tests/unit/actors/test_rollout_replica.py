"""What a replica asks its engine for, with an engine that answers by hand."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors import rollout_replica, stacks
from actors.rollout_replica import Health, Replica, ReplicaSettings
from raytune.stages.samples import Completion, Group, Prompt, Sampling
from tests.helpers.groups import completion
from tests.helpers.tiny import tiny_tokenizer

PROMPT = Prompt(3, 3, np.array([5, 6], np.int32))
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=64, stop_ids=(2,))
DRAWN, GREEDY = [40, 2], [50, 2]
Asked = list[tuple[list[int], Sampling, int]]


class Scripted(Replica):
    """Takes [50, 2] for the likeliest answer and draws [40, 2] otherwise."""

    def __init__(self, settings: ReplicaSettings) -> None:
        super().__init__(settings)
        self._tokenizer = tiny_tokenizer()
        self.asked: Asked = []

    async def _draw(
        self, ids: Sequence[int], sampling: Sampling, *, count: int, seed: int, limit: int
    ) -> list[Completion]:
        self.asked.append((list(ids), sampling, count))
        return [completion(DRAWN if sampling.temperature else GREEDY) for _ in range(count)]

    async def _health(self) -> Health:
        return Health(0, False, False, 0)


def answered(
    monkeypatch: pytest.MonkeyPatch, sampling: Sampling, environment: str | None = None
) -> tuple[Group, Asked]:
    monkeypatch.setattr(stacks, "register", lambda what: None)
    replica = Scripted(ReplicaSettings("none", max_length=66, environment=environment or None))
    return asyncio.run(replica.generate(PROMPT, sampling, 2)), replica.asked


def test_the_likeliest_answer_is_drawn_besides_and_is_none_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = replace(SAMPLING, greedy_baseline=True)
    group, asked = answered(monkeypatch, sampling)
    assert [one.ids.tolist() for one in group.completions] == [DRAWN, DRAWN]
    assert group.baseline is not None
    assert group.baseline.ids.tolist() == GREEDY
    assert group.sampling == sampling
    (_, drawn, size), (ids, greedy, one) = asked
    assert (drawn, size, one, ids) == (sampling, 2, 1, [5, 6])
    assert (greedy.temperature, greedy.top_p, greedy.top_k) == (0.0, 1.0, 0)
    assert (greedy.max_new_tokens, greedy.stop_ids, greedy.seed) == (64, (2,), sampling.seed)


def test_without_being_asked_for_it_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    group, asked = answered(monkeypatch, SAMPLING)
    assert (group.baseline, len(group.drawn), len(asked)) == (None, 2, 1)


def test_in_a_conversation_every_turn_of_it_is_the_likeliest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "twice.py"
    file.write_text(
        "from raytune.stages.environment import Reply\n"
        "class Twice:\n"
        "    async def reset(self, prompt):\n"
        "        self.turns = 0\n"
        "    async def step(self, text, ids):\n"
        "        self.turns += 1\n"
        "        return Reply(ids=[60], done=self.turns == 2)\n"
    )
    group, _ = answered(monkeypatch, replace(SAMPLING, greedy_baseline=True), f"{file}:Twice")
    assert [one.ids.tolist() for one in group.completions] == [[*DRAWN, 60, *DRAWN, 60]] * 2
    assert group.baseline is not None
    assert group.baseline.ids.tolist() == [*GREEDY, 60, *GREEDY, 60]
    assert group.baseline.mask.tolist() == [True, True, False, True, True, False]


BLOCKS = """
import threading
from raytune.stages.environment import Reply

class Blocks:
    \"\"\"Blocks for good in a conversation about an even token.\"\"\"

    async def reset(self, prompt):
        self.blocks = prompt.ids[-1] % 2 == 0

    async def step(self, text, ids):
        if self.blocks:
            threading.Event().wait()
        return Reply(done=True)
"""


def test_a_conversation_that_blocks_for_good_costs_no_later_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stacks, "register", lambda what: None)
    file = tmp_path / "blocks.py"
    file.write_text(BLOCKS)
    # The deadline is there for what would otherwise hang.
    replica = Scripted(
        ReplicaSettings(
            "none", max_length=66, environment=f"{file}:Blocks", environment_seconds=2.0, request_deadline=60.0
        )
    )
    stuck = asyncio.run(replica.generate(PROMPT, SAMPLING, 2))
    assert [one.failure for one in stuck.completions] == [
        "its step was lost: an environment ended their loop, or blocked it for 2 s"
    ] * 2
    well = asyncio.run(replica.generate(replace(PROMPT, ids=np.array([5, 7], np.int32)), SAMPLING, 2))
    assert [(one.finish, one.ids.tolist()) for one in well.completions] == [("environment", DRAWN)] * 2


def test_turns_end_before_their_request_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stacks, "register", lambda what: None)
    file = tmp_path / "blocks.py"
    file.write_text(BLOCKS)
    monkeypatch.setattr(rollout_replica, "_TALKS", 0.05)
    replica = Scripted(ReplicaSettings("none", max_length=66, environment=f"{file}:Blocks", request_deadline=40.0))
    group = asyncio.run(replica.generate(PROMPT, SAMPLING, 2))
    assert [one.failure for one in group.completions] == ["its turns took too long for rollout_timeout"] * 2
