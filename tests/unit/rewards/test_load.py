import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raytune.config.reward import RewardConfig
from raytune.errors import ConfigError
from raytune.rewards.builtin import BUILT_INS
from raytune.rewards.load import load_rewards
from raytune.rewards.score import score
from tests.helpers.server import serving

FILE = '''
"""Rewards of a user."""
from dataclasses import dataclass

@dataclass
class Found:
    where: int

def plain(completions, **kwargs):
    return [float(len(completion)) for completion in completions]

def level(completions, level):
    return level

def strange(prompts, answers):
    return []

def positional(completions, /, **kwargs):
    return []

def tokens_only(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def with_default(completions, bonus=0.5):
    return [bonus] * len(completions)

def by_step(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step)] * len(completions)

async def later(completions, **kwargs):
    return [2.0] * len(completions)

class Judge:
    async def __call__(self, completions, **kwargs):
        return [3.0] * len(completions)

judge = Judge()
number = 5
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return str(path)


def load(*specs: str, columns: Sequence[str] | None = ("solution", "tests", "level"), **keys: Any) -> list[Any]:
    return load_rewards(RewardConfig(reward_funcs=specs, **keys), columns=columns, max_length=100)


def scores(specs: Sequence[str], completions: Sequence[Any], **columns: Any) -> tuple[tuple[float | None, ...], ...]:
    return score(load(*specs, columns=list(columns)), completions, columns).scores


def test_every_built_in_function_loads_and_scores() -> None:
    keys: dict[str, Any] = {"reward_regex": "7", "overlong_buffer_len": 20}
    names = [name for name in BUILT_INS if name not in ("judge", "api")]
    rewards = load(*names, **keys)
    columns = {
        "prompts": ["3+4="],
        "completion_ids": [[1] * 90],
        "solution": ["7"],
        "tests": ["assert True"],
        "level": [1],
    }
    table = score(rewards, ["<think>3+4</think>7"], columns)
    assert dict(zip(table.names, (column[0] for column in table.scores), strict=True)) == {
        "math": 1.0,
        "exact": 0.0,
        "number": 1.0,
        "regex": 1.0,
        "think_format": 1.0,
        "length": -0.9,
        "overlong": -0.5,
        "code": 0.0,  # the answer is no Python
    }


def test_servers_are_built_in_too() -> None:
    def reply(number: int, body: Any) -> tuple[int, Any]:
        is_judge = "temperature" in body
        return 200, {"choices": [{"message": {"content": "Score: 1"}}]} if is_judge else {"scores": [5]}

    with serving(reply) as server:
        keys = {"reward_model": f"{server.url}/score", "reward_model_type": "api"}
        rewards = load("judge", judge_url=server.url, judge_model="m", reward_weights="1,0.1", **keys)
        table = score(rewards, ["7"], {"prompts": ["3+4="]})
    assert table.names == ("judge", "api")
    assert table.combined == (1.5,)


@pytest.mark.parametrize(
    ("spec", "keys", "why"),
    [
        ("regex", {}, "needs reward_regex"),
        ("judge", {"judge_model": "m"}, "needs judge_url"),
        ("judge", {"judge_url": "http://host"}, "needs judge_model"),
        ("judge", {"judge_url": "http://host", "judge_model": "m", "judge_prompt": "{prompt}"}, "slot {completion}"),
        ("api", {}, "needs reward_model"),
        ("overlong", {"overlong_buffer_len": 200}, "buffer of 200 tokens in answers of 100"),
    ],
)
def test_a_setting_that_is_missing(spec: str, keys: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(spec, **keys)


def test_the_answers_column_can_have_another_name() -> None:
    (reward,) = load("number", columns=["answer"], reward_answer_column="answer")
    assert score([reward], ["It is 7"], {"answer": [7]}).combined == (1.0,)


def test_a_column_that_the_prompts_lack() -> None:
    with pytest.raises(ConfigError, match=r"'math' needs the column 'solution'.*They have answer, level\."):
        load("math", columns=["level", "answer"])
    assert load("math", columns=None)


def test_slots_of_a_judge_are_columns() -> None:
    keys = {"judge_url": "http://host", "judge_model": "m", "judge_prompt": "{prompt} {completion} {soluton}"}
    remedy = r"slot \{soluton\}.*Did you mean '\{solution\}'\?.*in its braces: '\{ soluton \}'\."
    with pytest.raises(ConfigError, match=remedy):
        load("judge", columns=["solution"], **keys)
    assert load("judge", columns=["soluton"], **keys)
    # What the columns are is not known yet.
    assert load("judge", columns=None, **keys)


@pytest.mark.parametrize(("word", "near"), [("promt", "prompt"), ("completions", "completion"), ("Answer", "answer")])
def test_a_slot_that_is_nearly_one_is_a_slip(word: str, near: str) -> None:
    keys = {"judge_url": "http://host", "judge_model": "m", "judge_prompt": f"{{completion}} {{{word}}}"}
    with pytest.raises(ConfigError, match=rf"Did you mean '\{{{near}\}}'"):
        load("judge", columns=["answer"], **keys)


def test_braces_of_a_judges_prompt_that_are_no_slot_stay(caplog: pytest.LogCaptureFixture) -> None:
    told = r'\boxed{answer} \frac{1}{2} {"a": 1} { level } End with "Score: {N}".'
    reply = {"choices": [{"message": {"content": "Score: 1"}}]}
    with caplog.at_level("WARNING"), serving(lambda number, body: (200, reply)) as server:
        keys = {"judge_url": server.url, "judge_model": "m", "judge_prompt": "{completion} {level} " + told}
        (reward,) = load("judge", columns=["level", "question"], **keys)
        score([reward], ["7"], {"prompts": ["3+4="], "level": [2], "question": ["?"]})
    assert server.requests[0].body["messages"][0]["content"] == f"7 2 {told}"
    assert [record.getMessage() for record in caplog.records] == [
        "judge_prompt: the prompts have no column {N}, {answer}; such braces stay as they are"
    ]


def test_functions_of_a_file(file: str) -> None:
    specs = [f"{file}:plain", f"{file}:level", f"{file}:tokens_only", f"{file}:with_default"]
    found = scores(specs, ["abc", "d"], level=[1, 2], completion_ids=[[1, 2], [3]])
    assert found == ((3.0, 1.0), (1.0, 2.0), (2.0, 1.0), (0.5, 0.5))
    assert [reward.name for reward in load(*specs)] == ["plain", "level", "tokens_only", "with_default"]


def test_async_functions_and_objects(file: str) -> None:
    rewards = load(f"{file}:later", f"{file}:judge")
    assert [reward.awaits for reward in rewards] == [True, True]
    assert score(rewards, ["a"], {}).scores == ((2.0,), (3.0,))


def test_what_a_file_makes_can_be_sent(file: str) -> None:
    (reward,) = load(f"{file}:plain")
    found = reward.call.__globals__["Found"](3)
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("spec", ["trl.rewards:accuracy_reward", "trl.rewards.accuracy_reward"])
def test_trls_functions_work_as_they_are(spec: str) -> None:
    answers = [[{"role": "assistant", "content": text}] for text in (r"\boxed{\frac{1}{3}}", r"\boxed{2}")]
    (reward,) = load(spec)
    table = score([reward], answers, {"solution": [r"\frac{1}{3}"] * 2, "prompts": [[], []]})
    assert table.scores == ((1.0, 0.0),)
    assert table.extra["solution"] == [r"\frac{1}{3}"] * 2
    assert reward.name == "accuracy_reward"


def test_objects_that_trl_makes_work_too(tmp_path: Path) -> None:
    path = tmp_path / "shaping.py"
    path.write_text(
        "from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment\n"
        "overlong = get_soft_overlong_punishment(100, 20)\n"
        "repetition = get_repetition_penalty_reward(2)\n"
    )
    specs = [f"{path}:overlong", f"{path}:repetition", "trl.rewards.think_format_reward"]
    answer = [{"role": "assistant", "content": "<think>a</think>b"}]
    # 90 of 100 tokens with a buffer of 20 is half the punishment; 89 pairs, all alike.
    assert scores(specs, [answer], completion_ids=[[5] * 90]) == ((-0.5,), (-88 / 89,), (1.0,))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("strange", "takes no completions"),
        ("positional", "arguments without a keyword"),
        ("Judge", "is a class"),
        ("number", "is a int, no reward function"),
        ("plein", "Did you mean 'plain'"),
        ("by_step", "needs TRL's trainer_state"),
    ],
)
def test_what_is_no_reward_function(file: str, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(f"{file}:{name}")


def test_a_function_that_wants_a_column_that_is_not_there(file: str) -> None:
    with pytest.raises(ConfigError, match=r"needs the column 'level'.*They have solution"):
        load(f"{file}:level", columns=["solution"])
    with pytest.raises(ConfigError, match=r"They have no columns of their own\."):
        load(f"{file}:level", columns=[])


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nubmer", "no reward function 'nubmer'. Did you mean 'number'"),
        ("no such thing", "Built in are math, exact"),
        ("not_installed.rewards:f", "No module named 'not_installed'"),
        ("trl.rewards:no_such_reward", "no_such_reward.*on every node"),
        ("missing.py:f", "does not exist"),
    ],
)
def test_what_cannot_be_found(spec: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load(spec)


@pytest.mark.parametrize("source", ["import not_installed", "def f(:", "raise SystemExit('no')"])
def test_a_file_that_does_not_run(tmp_path: Path, source: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match="does not run"):
        load(f"{path}:f")


def test_weights_go_with_functions() -> None:
    assert [reward.weight for reward in load("exact", "length", reward_weights="1, 0.5")] == [1.0, 0.5]
    assert [reward.weight for reward in load("exact", "length")] == [1.0, 1.0]
    with pytest.raises(ConfigError, match=r"1 reward_weights for 2 reward functions \(exact, length\)"):
        load("exact", "length", reward_weights="1")
    with pytest.raises(ConfigError, match="all reward_weights are 0"):
        load("exact", reward_weights="0")


def test_names_tell_functions_apart(file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(FILE)
    assert [reward.name for reward in load(f"{file}:plain", f"{other}:plain")] == [f"{file}:plain", f"{other}:plain"]
    with pytest.raises(ConfigError, match="'exact' is listed twice"):
        load("exact", "exact")


def test_no_functions() -> None:
    assert load() == []
