"""Conversations of several turns: append-only ids, masks and versions."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from raytune.stages.calculator import Calculator, calculate
from raytune.stages.environment import Environment, Reply, converse, merged
from raytune.stages.samples import Completion, Finish, Ids, Prompt, VersionSpan
from tests.helpers.tiny import tiny_tokenizer

PROMPT = Prompt(0, 0, np.array([1, 5], np.int32))
LAST = len(tiny_tokenizer()) - 1


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
            vocabulary=len(tiny_tokenizer()),
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
        return self.act()


def fail() -> None:
    raise KeyError("boom")


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (Trouble("reset", fail), "its reset raised KeyError: 'boom'"),
        (Trouble("step", fail), "its step raised KeyError: 'boom'"),
        (Trouble("step", lambda: sys.exit(3)), "its step raised SystemExit: 3"),
        (Trouble("step", lambda: "hm"), "its step gave str, not a Reply"),
    ],
)
def test_an_environment_that_fails_ends_its_answer_alone(environment: Environment, why: str) -> None:
    first = drawn("a", 0)
    answer = run(environment, first, Script())
    assert (answer.finish, answer.failure, answer.ids.tolist()) == ("failed", why, first.ids.tolist())


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(text=cast(str, None)), "a Reply whose text is NoneType, not str"),
        (Reply(text=cast(str, {"result": 5})), "a Reply whose text is dict, not str"),
        (Reply(done=cast(bool, np.zeros(2))), "a Reply whose done is ndarray, not bool"),
        (Reply(ids=cast(Any, [7, "8"])), f"a Reply with the id '8', not an int below {LAST + 1}"),
        (Reply(ids=[7, 1.0]), f"a Reply with the id 1.0, not an int below {LAST + 1}"),  # type: ignore[list-item]
        (Reply(ids=[-1]), f"a Reply with the id -1, not an int below {LAST + 1}"),
        (Reply(ids=[LAST + 1]), f"a Reply with the id {LAST + 1}, not an int below {LAST + 1}"),
    ],
)
def test_a_reply_that_stands_for_no_tokens_ends_its_answer_alone(reply: Reply, why: str) -> None:
    first = drawn("a", 0)
    answer = run(Trouble("step", lambda: reply), first, Script())
    assert (answer.finish, answer.failure) == ("failed", f"its step gave {why}")
    assert answer.ids.tolist() == first.ids.tolist()


@pytest.mark.parametrize(
    "reply", [Reply("half of a pair: \ud83d"), Reply(ids=cast(Any, None)), Reply(ids=cast(Any, np.array(5)))]
)
def test_a_reply_that_cannot_be_written_ends_its_answer_alone(reply: Reply) -> None:
    answer = run(Trouble("step", lambda: reply), drawn("a", 0), Script())
    assert answer.finish == "failed"
    assert answer.failure.startswith("its step gave a Reply that is no tokens: ")


def test_ids_may_be_an_array_and_the_last_of_the_vocabulary() -> None:
    reply = Reply(ids=cast(Any, np.array([0, LAST])), done=True)
    answer = run(Trouble("step", lambda: reply), drawn("a", 0), Script())
    assert (answer.finish, answer.ids.tolist()) == ("environment", [*text_ids("a"), 0, LAST])


def test_turns_that_take_too_long_together_end_their_answer() -> None:
    class Tires:
        def __init__(self) -> None:
            self.turns = 0

        async def reset(self, prompt: Prompt) -> None: ...

        async def step(self, text: str, ids: Ids) -> Reply:
            self.turns += 1
            await asyncio.sleep(60 if self.turns > 1 else 0)
            return Reply("x")

    answer = run(Tires(), drawn("a", 0), Script("b"), time_limit=4.0)
    assert (answer.finish, answer.failure) == ("failed", "its turns took too long for rollout_timeout")
    # What there was of it is kept.
    assert ids_text(answer.ids.tolist()) == "axb"


def test_an_engine_that_takes_too_long_is_not_the_environments_fault() -> None:
    async def draw(ids: Sequence[int], limit: int) -> Completion:
        raise TimeoutError("no engine")

    script = Script()
    script.draw = draw  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="no engine"):
        run(Calculator(), drawn("<calc>2+3</calc>", 0), script, time_limit=60.0)


def test_neighbouring_spans_of_one_version_become_one() -> None:
    spans = [VersionSpan(1, 0, 3), VersionSpan(1, 3, 5), VersionSpan(1, 7, 8), VersionSpan(2, 8, 9)]
    assert merged(spans) == (VersionSpan(1, 0, 5), VersionSpan(1, 7, 8), VersionSpan(2, 8, 9))


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2+3*4", "14"), (" (2+3)*4 ", "20"), ("-1/8", "-0.125"), ("1/0", "error"), ("2**9", "error"), ("f(1)", "error")],
)
def test_calculate(expression: str, value: str) -> None:
    assert calculate(expression) == value
