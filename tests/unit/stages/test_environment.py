"""Conversations of several turns: append-only ids, masks and versions."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytune.errors import ConfigError
from raytune.stages.calculator import Calculator, calculate
from raytune.stages.environment import Apart, Environment, Reply, check_environment, converse, load_environment, merged
from raytune.stages.samples import Completion, Finish, Ids, Prompt, VersionSpan
from tests.helpers.tiny import tiny_tokenizer

PROMPT = Prompt(0, 0, np.array([1, 5], np.int32))


def text_ids(text: str) -> list[int]:
    return list(tiny_tokenizer().encode(text, add_special_tokens=False))


def ids_text(ids: Sequence[int]) -> str:
    text = tiny_tokenizer().decode(list(ids))
    assert isinstance(text, str)
    return text


def drawn(text: str, version: int, finish: Finish = "stop") -> Completion:
    ids = np.array(text_ids(text), np.int32)
    logprobs = np.full(len(ids), -0.5, np.float32)
    return Completion(ids, logprobs, np.ones(len(ids), np.bool_), (VersionSpan(version, 0, len(ids)),), finish)


class Script:
    """A policy that says what is written, one weight version a turn, and remembers what it was given."""

    def __init__(self, *turns: str) -> None:
        self.turns = list(turns)
        self.seen: list[list[int]] = []
        self.limits: list[int] = []

    async def draw(self, ids: Sequence[int], limit: int) -> Completion:
        self.seen.append(list(ids))
        self.limits.append(limit)
        return drawn(self.turns.pop(0), version=len(self.seen))


def run(
    environment: Environment,
    first: Completion,
    script: Script,
    *,
    budget: int = 200,
    max_turns: int = 8,
    time_limit: float | None = None,
) -> Completion:
    return asyncio.run(
        converse(
            environment,
            PROMPT,
            first,
            script.draw,
            budget=budget,
            max_turns=max_turns,
            encode=text_ids,
            decode=ids_text,
            time_limit=time_limit,
        )
    )


def test_a_calculator_call_is_answered_and_its_result_is_masked() -> None:
    script = Script("so 5")
    answer = run(Calculator(), drawn("<calc>2+3</calc>", 0), script)
    text = "<calc>2+3</calc><result>5</result>so 5"
    assert ids_text(answer.ids.tolist()) == text
    given = slice(len("<calc>2+3</calc>"), len("<calc>2+3</calc><result>5</result>"))
    mask = np.ones(len(text), np.bool_)
    mask[given] = False
    assert answer.mask.tolist() == mask.tolist()
    assert answer.logprobs.tolist() == np.where(mask, np.float32(-0.5), np.float32(0)).tolist()
    assert answer.versions == (VersionSpan(0, 0, given.start), VersionSpan(1, given.stop, len(text)))
    assert (answer.oldest, answer.finish) == (0, "environment")


def test_every_turn_sees_exactly_the_tokens_so_far() -> None:
    script = Script("<calc>1/4</calc>", "done")
    answer = run(Calculator(), drawn("<calc>2*3</calc>", 0), script)
    whole = [*PROMPT.ids.tolist(), *answer.ids.tolist()]
    assert [whole[: len(seen)] for seen in script.seen] == script.seen
    assert "<result>0.25</result>" in ids_text(answer.ids.tolist())
    assert script.limits == [200 - (len(seen) - len(PROMPT.ids)) for seen in script.seen]


def test_a_result_goes_on_with_what_the_last_token_of_a_call_began() -> None:
    answer = run(Calculator(), drawn("<calc>2+3</calc><", 0), Script("5"))
    assert ids_text(answer.ids.tolist()) == "<calc>2+3</calc><result>5</result>5"


def test_turns_come_to_an_end() -> None:
    script = Script("<calc>3</calc>", "<calc>4</calc>", "never")
    answer = run(Calculator(), drawn("<calc>2</calc>", 0), script, max_turns=3)
    assert (
        ids_text(answer.ids.tolist())
        == "<calc>2</calc><result>2</result><calc>3</calc><result>3</result><calc>4</calc>"
    )
    assert answer.finish == "length"
    last = run(Calculator(), drawn("<calc>2</calc>", 0), Script("2"), max_turns=2)
    assert last.finish == "environment"


def test_a_turn_that_ran_out_of_tokens_ends_the_answer() -> None:
    answer = run(Calculator(), drawn("<calc>2+3</calc>", 0, "length"), Script())
    assert (answer.finish, bool(answer.mask.all())) == ("length", True)


def test_words_that_do_not_fit_are_not_put_in() -> None:
    first = drawn("<calc>2+3</calc>", 0)
    answer = run(Calculator(), first, Script(), budget=len(first.ids) + 4)
    assert (answer.finish, answer.ids.tolist()) == ("length", first.ids.tolist())


def test_an_environment_may_give_ids() -> None:
    class Nudge:
        async def reset(self, prompt: Prompt) -> None:
            self.turns = 0

        async def step(self, text: str, ids: Ids) -> Reply:
            self.turns += 1
            return Reply(ids=(7, 8), done=self.turns == 2)

    answer = run(Nudge(), drawn("a", 0), Script("b"))
    assert answer.ids.tolist() == [*text_ids("a"), 7, 8, *text_ids("b"), 7, 8]
    assert answer.mask.tolist() == [True, False, False, True, False, False]


class Trouble:
    """An environment that does what it is told to when it is asked."""

    def __init__(self, verb: str, act: Callable[[], Any]) -> None:
        self.verb, self.act = verb, act

    async def reset(self, prompt: Prompt) -> None:
        if self.verb == "reset":
            self.act()

    async def step(self, text: str, ids: Ids) -> Any:
        if self.verb == "hang":
            await asyncio.sleep(60)
        return self.act()


def fail() -> None:
    raise KeyError("boom")


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (Trouble("reset", fail), "its reset raised KeyError: 'boom'"),
        (Trouble("step", fail), "its step raised KeyError: 'boom'"),
        (Trouble("step", lambda: "hm"), "its step gave str, not a Reply"),
        (Trouble("hang", fail), "its step took longer than 0.2 s"),
    ],
)
def test_an_environment_that_fails_ends_its_answer_alone(environment: Environment, why: str) -> None:
    first = drawn("a", 0)
    answer = run(environment, first, Script(), time_limit=0.2)
    assert (answer.finish, answer.failure, answer.ids.tolist()) == ("failed", why, first.ids.tolist())


def test_an_environment_that_blocks_keeps_nobody_else_waiting() -> None:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    blocked = threading.Event()
    apart = Apart(lambda: Trouble("step", lambda: blocked.wait(60)), loop)
    answer = run(apart, drawn("a", 0), Script(), time_limit=0.2)
    blocked.set()
    assert answer.failure == "its step took longer than 0.2 s"
    with_words = run(Apart(Calculator, loop), drawn("<calc>2+3</calc>", 0), Script("5"), time_limit=10.0)
    assert ids_text(with_words.ids.tolist()) == "<calc>2+3</calc><result>5</result>5"


def test_what_cannot_be_made_is_refused_before_a_run(tmp_path: Path) -> None:
    check_environment("raytune.stages.calculator:Calculator")
    file = tmp_path / "needs_level.py"
    verbs = "    async def reset(self, prompt): ...\n    async def step(self, text, ids): ...\n"
    file.write_text(f"class E:\n    def __init__(self, level): ...\n{verbs}")
    with pytest.raises(ConfigError, match=r"cannot be made: TypeError.*'level'"):
        check_environment(f"{file}:E")
    broken = tmp_path / "misspelt.py"
    broken.write_text("level = lvel + 1\n")
    with pytest.raises(ConfigError, match="cannot be imported: NameError: name 'lvel' is not defined"):
        check_environment(f"{broken}:E")


def test_neighbouring_spans_of_one_version_become_one() -> None:
    spans = [VersionSpan(1, 0, 3), VersionSpan(1, 3, 5), VersionSpan(1, 7, 8), VersionSpan(2, 8, 9)]
    assert merged(spans) == (VersionSpan(1, 0, 5), VersionSpan(1, 7, 8), VersionSpan(2, 8, 9))


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2+3*4", "14"), (" (2+3)*4 ", "20"), ("-1/8", "-0.125"), ("1/0", "error"), ("2**9", "error"), ("f(1)", "error")],
)
def test_calculate(expression: str, value: str) -> None:
    assert calculate(expression) == value


def test_environments_are_found_by_module_and_by_file(tmp_path: Path) -> None:
    assert load_environment("raytune.stages.calculator:Calculator") is Calculator
    file = tmp_path / "mine.py"
    file.write_text("class E:\n    async def reset(self, prompt): ...\n    async def step(self, text, ids): ...\n")
    assert load_environment(f"{file}:E").__name__ == "E"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("calculator", "no environment 'calculator'"),
        ("raytune.stages.nowhere:X", "cannot be imported"),
        ("/nowhere/mine.py:X", "there is no file /nowhere/mine.py"),
        ("raytune.stages.calculator:Missing", "no class 'Missing'"),
        ("raytune.stages.environment:Reply", "no async method reset and none step"),
    ],
)
def test_what_is_no_environment_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_environment(spec)
