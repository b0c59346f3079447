"""The reward functions that come with the program, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raytune.config.reward import RewardConfig
from raytune.errors import ConfigError
from raytune.rewards.code import CodeReward
from raytune.rewards.format import AnswerReward, PatternReward, same_number, same_text, think_format
from raytune.rewards.http import HttpReward
from raytune.rewards.judge import DEFAULT_PROMPT, SLOT, JudgeReward
from raytune.rewards.length import LengthPenalty, OverlongPenalty
from raytune.rewards.math import MathReward
from raytune.rewards.sandbox import Limits

GIB = 1024**3
OWN_SHARE = 0.9
"""Part of the time limit in which a function that waits for others gives up by itself, and knows better what to say."""


@dataclass(frozen=True, slots=True)
class Needs:
    """A built-in function, the columns without which it cannot score, and the {words} of its template: columns, or
    text."""

    call: Callable[..., Any]
    columns: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()


def listed(cfg: RewardConfig) -> list[str]:
    """The functions that a config asks for: reward_funcs, and after them the server that is its reward model."""
    has_server = cfg.reward_model is not None and cfg.reward_model_type == "api"
    return [*cfg.reward_funcs, *(["api"] if has_server and "api" not in cfg.reward_funcs else [])]


def _exact(cfg: RewardConfig, max_length: int) -> Needs:
    column = cfg.reward_answer_column
    return Needs(AnswerReward(same_text, column=column), (column,))


def _number(cfg: RewardConfig, max_length: int) -> Needs:
    column = cfg.reward_answer_column
    return Needs(AnswerReward(same_number, column=column), (column,))


def _math(cfg: RewardConfig, max_length: int) -> Needs:
    return Needs(MathReward(column=cfg.reward_answer_column), (cfg.reward_answer_column,))


def _regex(cfg: RewardConfig, max_length: int) -> Needs:
    return Needs(PatternReward(_given(cfg.reward_regex, "reward_regex", "regex")))


def _think(cfg: RewardConfig, max_length: int) -> Needs:
    return Needs(think_format)


def _length(cfg: RewardConfig, max_length: int) -> Needs:
    return Needs(LengthPenalty(max_length), ("completion_ids",))


def _overlong(cfg: RewardConfig, max_length: int) -> Needs:
    penalty = OverlongPenalty(max_length, cfg.overlong_buffer_len, cfg.overlong_penalty_factor)
    return Needs(penalty, ("completion_ids",))


def _code(cfg: RewardConfig, max_length: int) -> Needs:
    limits = Limits(seconds=cfg.code_time_limit, memory=int(cfg.code_memory_limit * GIB))
    seconds = OWN_SHARE * cfg.reward_time_limit
    return Needs(CodeReward(column=cfg.code_tests_column, limits=limits, seconds=seconds), (cfg.code_tests_column,))


def _judge(cfg: RewardConfig, max_length: int) -> Needs:
    prompt = cfg.judge_prompt or DEFAULT_PROMPT
    slots = sorted(set(SLOT.findall(prompt)))
    if "completion" not in slots:
        raise ConfigError("judge_prompt has no slot {completion}", fix="Say where the answer goes.")
    judge = JudgeReward(
        url=_given(cfg.judge_url, "judge_url", "judge"),
        model=_given(cfg.judge_model, "judge_model", "judge"),
        prompt=prompt,
        score_pattern=cfg.judge_score_regex,
        seconds=OWN_SHARE * cfg.reward_time_limit,
        api_key=cfg.judge_api_key,
    )
    return Needs(judge, slots=tuple(slots))


def _api(cfg: RewardConfig, max_length: int) -> Needs:
    url = _given(cfg.reward_model, "reward_model", "api")
    return Needs(HttpReward(url, seconds=OWN_SHARE * cfg.reward_time_limit), ("prompts",))


def _given(value: str | None, key: str, name: str) -> str:
    if value is None:
        raise ConfigError(f"the reward function '{name}' needs {key}", fix=f"Set {key}.")
    return value


BUILT_INS: Mapping[str, Callable[[RewardConfig, int], Needs]] = {
    "math": _math,
    "exact": _exact,
    "number": _number,
    "regex": _regex,
    "think_format": _think,
    "length": _length,
    "overlong": _overlong,
    "code": _code,
    "judge": _judge,
    "api": _api,
}
"""Each takes the config and the most tokens that an answer has."""
