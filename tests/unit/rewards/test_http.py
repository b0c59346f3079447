import asyncio
import socket
import time
from typing import Any

import pytest

import raytune.rewards.http as rewards_http
from raytune.errors import ConfigError
from raytune.rewards.base import Completion, RewardUnavailable
from raytune.rewards.http import HttpReward
from tests.helpers.server import serving


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_http, "FIRST_PAUSE", 0.01)


def ask(url: str, answers: list[Completion], *, seconds: float = 10, **columns: list[Any]) -> list[float | None]:
    return asyncio.run(HttpReward(url, seconds=seconds)(answers, **columns))


def test_the_form_is_llamafactorys() -> None:
    with serving(lambda n, body: (200, {"id": "x", "scores": [len(text) / 2 for text in body["messages"]]})) as server:
        scores = ask(f"{server.url}/v1/score/evaluation", ["3", "44"], prompts=["1+2=", "40+4="])
    assert scores == [2.5, 3.5]
    (request,) = server.requests
    assert request.path == "/v1/score/evaluation"
    assert request.body == {"model": "model", "messages": ["1+2=3", "40+4=44"]}


def test_conversations_are_sent_as_the_policys_texts() -> None:
    chat: list[Completion] = [[{"role": "assistant", "content": "3"}]]
    with serving(lambda n, body: (200, {"scores": [1]})) as server:
        assert ask(server.url, chat, prompts=[[]], texts=["<|user|>1+2=<|assistant|>3"]) == [1]
        with pytest.raises(TypeError, match="column 'texts'"):
            ask(server.url, chat, prompts=[[{"role": "user", "content": "1+2="}]])
    assert [request.body["messages"] for request in server.requests] == [["<|user|>1+2=<|assistant|>3"]]


def test_a_busy_server_is_asked_again() -> None:
    replies = [(503, "busy"), (429, "slowly"), (200, {"scores": [0.5, None]})]
    with serving(lambda n, body: replies[n]) as server:
        assert ask(server.url, ["a", "b"], prompts=["", ""]) == [0.5, None]
    assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_given_up_at_the_deadline() -> None:
    begun = time.monotonic()
    with (
        serving(lambda n, body: (503, "busy")) as server,
        pytest.raises(RewardUnavailable, match=r"within 0\.\d s: HTTP 503 busy"),
    ):
        ask(server.url, ["a"], prompts=[""], seconds=0.5)
    assert time.monotonic() - begun < 5
    assert len(server.requests) > 2


def test_a_server_that_hangs_is_given_up_at_the_deadline() -> None:
    begun = time.monotonic()
    with (
        serving(lambda n, body: (200, {"scores": [1]}), seconds=2) as server,
        pytest.raises(RewardUnavailable, match="reward_time_limit"),
    ):
        ask(server.url, ["a"], prompts=[""], seconds=0.3)
    assert time.monotonic() - begun < 8


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RewardUnavailable, match="ConnectError"):
        ask(f"http://127.0.0.1:{port}/", ["a"], prompts=[""], seconds=0.2)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    with serving(lambda n, body: (status, "no")) as server, pytest.raises(RewardUnavailable, match=f"HTTP {status} no"):
        ask(server.url, ["a"], prompts=[""])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("not json", "no JSON: not json"),
        ({"rewards": [1]}, "no list of scores"),
        ([1], "no list of scores"),
        ({"scores": [1, 2]}, "2 scores for 1 texts"),
        ({"scores": ["good"]}, "'good' for a score"),
    ],
)
def test_a_reply_of_another_form(reply: object, said: str) -> None:
    with serving(lambda n, body: (200, reply)) as server, pytest.raises(RewardUnavailable, match=said):
        ask(server.url, ["a"], prompts=[""])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "http://host:port"])
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ConfigError, match="reward_model is no URL"):
        HttpReward(url, seconds=1)
