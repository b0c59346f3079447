"""Answers drawn token by token, against the model's own forward pass over the whole of them."""

from typing import Any

import numpy as np
import pytest
import torch

from actors.rollout_sample import draw_answers, log_policy, spans_of
from raytune.stages.samples import Completion, Sampling, VersionSpan
from tests.helpers.tiny import tiny_model, tiny_tokenizer

PROMPT = [1, 40, 41, 42]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(seed=3)


def draw(model: Any, sampling: Sampling, *, count: int = 4, seed: int = 9, limit: int = 12) -> list[Completion]:
    return draw_answers(model, PROMPT, sampling, count=count, seed=seed, limit=limit, between=lambda: 0, decode=None)


def forward_logprobs(model: Any, ids: list[int], temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(ids)), ids]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_forward_pass(model: Any, temperature: float) -> None:
    for answer in draw(model, Sampling(temperature=temperature)):
        expected = forward_logprobs(model, answer.ids.tolist(), temperature)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_an_answer_depends_on_its_seed_alone(model: Any) -> None:
    group = draw(model, Sampling(), count=4)
    again = draw(model, Sampling(), count=4)
    assert [one.ids.tolist() for one in group] == [one.ids.tolist() for one in again]
    assert len({tuple(one.ids.tolist()) for one in group}) == 4
    alone = draw(model, Sampling(), count=1, seed=9 + 2)
    assert alone[0].ids.tolist() == group[2].ids.tolist()


def test_a_stop_token_ends_an_answer_and_belongs_to_it_while_others_go_on(model: Any) -> None:
    free = draw(model, Sampling())
    stop = int(free[1].ids[3])
    stopped = draw(model, Sampling(stop_ids=(stop,)))
    for before, after in zip(free, stopped, strict=True):
        ids = before.ids.tolist()
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        assert after.ids.tolist() == ids[:end]
        assert after.finish == ("stop" if stop in ids else "length")
    assert stopped[1].finish == "stop"


def test_a_stop_string_ends_an_answer_with_the_token_that_completes_it(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    free = draw(model, Sampling(), count=1)[0].ids.tolist()
    text = str(tokenizer.decode(free[4:6]))
    answer = draw_answers(
        model,
        PROMPT,
        Sampling(stop=(text,)),
        count=1,
        seed=9,
        limit=12,
        between=lambda: 0,
        decode=lambda ids: str(tokenizer.decode(list(ids))),
    )[0]
    assert (answer.ids.tolist(), answer.finish) == (free[:6], "stop")


def test_new_weights_take_effect_at_the_next_token(model: Any) -> None:
    other = tiny_model(seed=4)
    changing = tiny_model(seed=3)
    calls = 0

    def between() -> int:
        nonlocal calls
        calls += 1
        if calls == 6:
            changing.load_state_dict(other.state_dict())
        return int(calls >= 6)

    answers = draw_answers(changing, PROMPT, Sampling(), count=3, seed=1, limit=9, between=between, decode=None)
    for answer in answers:
        assert answer.versions == (VersionSpan(0, 0, 5), VersionSpan(1, 5, 9))
        ids = answer.ids.tolist()
        expected = torch.cat([forward_logprobs(model, ids, 1.0)[:5], forward_logprobs(other, ids, 1.0)[5:]])
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_top_k_keeps_the_k_likeliest_and_renormalises() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    shares = log_policy(logits, Sampling(top_k=2)).exp()[0]
    kept = np.exp([3.0, 2.0])
    np.testing.assert_allclose(shares, [kept[0] / kept.sum(), 0, kept[1] / kept.sum(), 0], rtol=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.45, [1]), (0.6, [1, 2]), (0.85, [0, 1, 2]), (1.0, [0, 1, 2, 3])])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    shares = np.array([0.2, 0.5, 0.25, 0.05])
    found = log_policy(torch.tensor(shares).log()[None], Sampling(top_p=top_p)).exp()[0].numpy()
    expected = np.zeros(4)
    expected[kept] = shares[kept] / shares[kept].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_temperature_zero_takes_the_likeliest(model: Any) -> None:
    answers = draw(model, Sampling(temperature=0.0), count=2)
    ids = answers[0].ids.tolist()
    with torch.no_grad():
        best = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 : -1].argmax(-1)
    assert ids == best.tolist() == answers[1].ids.tolist()


def test_spans_are_runs_of_equal_versions() -> None:
    assert spans_of([3, 3, 4]) == (VersionSpan(3, 0, 2), VersionSpan(4, 2, 3))
    assert spans_of([]) == ()
