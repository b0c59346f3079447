import asyncio
import threading
from typing import Any

import pytest

import raytune.rewards.http as rewards_http
from raytune.config.reward import RewardConfig
from raytune.errors import ConfigError
from raytune.rewards.base import RewardUnavailable, Unscored
from raytune.rewards.judge import DEFAULT_PROMPT, JudgeReward, fill
from tests.helpers.server import serving

PATTERN = RewardConfig().judge_score_regex


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_http, "FIRST_PAUSE", 0.01)


def said(text: str | None) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def judge(url: str, **changes: Any) -> JudgeReward:
    settings: dict[str, Any] = {
        "url": url,
        "model": "judge-7b",
        "prompt": "{prompt}|{completion}|{solution}",
        "score_pattern": PATTERN,
    }
    return JudgeReward(**settings | {"seconds": 10} | changes)


def test_a_judge_is_asked_about_each_answer() -> None:
    with serving(lambda n, body: said(f"Score: 0.{len(body['messages'][0]['content'])}")) as server:
        scores = asyncio.run(
            judge(f"{server.url}/v1", api_key="key")(["3", "44"], prompts=["1+2", "?"], solution=[3, 4])
        )
    # "1+2|3|3" has 7 characters, "?|44|4" has 6.
    assert scores == [0.7, 0.6]
    bodies = sorted((request.body for request in server.requests), key=str)
    assert bodies[0] == {"model": "judge-7b", "messages": [{"role": "user", "content": "1+2|3|3"}], "temperature": 0}
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert {request.headers["Authorization"] for request in server.requests} == {"Bearer key"}


def test_a_whole_address_is_taken_as_it_is() -> None:
    with serving(lambda n, body: said("score 1")) as server:
        assert asyncio.run(judge(f"{server.url}/x/chat/completions")(["a"])) == [1]
    assert server.requests[0].path == "/x/chat/completions"
    assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 0.8", 0.8),
        ("**Score:** 1", 1),
        ("score: 0.1, no, Score: 0.3.", 0.3),
        ("SCORE = -1", -1),
        ("Score: -2", -2),
        ("Score: .8", 0.8),
        ("Score: -.5", -0.5),
        ("Score: ...0.7", 0.7),
        ("Score: 0,8", 0.8),
        ("Score: 1, for it is right.", 1),
        ("Score (0-1): 0.8", 0.8),
        ("**Score [0 to 1]**: **0.8**", 0.8),
        ("Score (0.8)\n\n1 mistake: none", 0.8),
        ('{"score": 0.25}', 0.25),
    ],
)
def test_the_last_score_counts(reply: str, score: float) -> None:
    with serving(lambda n, body: said(reply)) as server:
        assert asyncio.run(judge(server.url)(["a"])) == [score]


@pytest.mark.parametrize("reply", ["It is good.", "", None])
def test_a_reply_without_a_score_scores_nothing(reply: str | None) -> None:
    with serving(lambda n, body: said(reply)) as server:
        (score,) = asyncio.run(judge(server.url)(["a"]))
    assert isinstance(score, Unscored)
    assert "gave no score" in score.why


def test_one_answer_that_the_server_refuses_leaves_the_others() -> None:
    with serving(lambda n, body: (400, "too long") if "bad" in str(body) else said("Score: 1")) as server:
        scores = asyncio.run(judge(server.url)(["a", "bad", "c"]))
    assert scores[0] == scores[2] == 1
    assert isinstance(scores[1], Unscored)
    assert "too long" in scores[1].why


def test_a_server_that_refuses_all_is_no_judge() -> None:
    with (
        serving(lambda n, body: (401, "who are you")) as server,
        pytest.raises(RewardUnavailable, match="401 who are you"),
    ):
        asyncio.run(judge(server.url)(["a", "b"]))


def test_another_kind_of_server_is_no_judge() -> None:
    with (
        serving(lambda n, body: (200, {"scores": [1]})) as server,
        pytest.raises(RewardUnavailable, match="no chat compl"),
    ):
        asyncio.run(judge(server.url)(["a"]))


def test_no_more_than_sixteen_requests_at_once() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def reply(number: int, body: Any) -> tuple[int, Any]:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return said("Score: 1")

    with serving(reply) as server:
        assert asyncio.run(judge(server.url)(["a"] * 40)) == [1] * 40
    assert 2 <= most <= 16


def test_slots_are_filled_once_and_other_braces_stay() -> None:
    template = 'Give {"score": 1} for {completion} to {prompt} ({level}, {unknown})'
    filled = fill(template, "{prompt}", {"prompts": "{level}", "level": 3})
    assert filled == 'Give {"score": 1} for {prompt} to {level} (3, {unknown})'


def test_a_conversation_is_told_with_its_speakers() -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert fill("{prompt}", "", {"prompts": prompt}) == "system: Be brief.\nuser: Hi"


def test_the_prompt_that_comes_with_it_has_both_slots() -> None:
    assert fill(DEFAULT_PROMPT, "THE ANSWER", {"prompts": "THE TASK"}).count("THE ") == 2


@pytest.mark.parametrize(
    ("pattern", "why"), [("(", "no regular expression"), (r"\d", "0 groups"), (r"(\d)(\d)", "2 groups")]
)
def test_a_pattern_without_its_group_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        judge("http://host", score_pattern=pattern)
