"""From the names in a config to reward functions that can be called; what is wrong with one is said before the run."""

import importlib.util
import inspect
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from raytune.config.reward import RewardConfig
from raytune.errors import ConfigError
from raytune.log import get_logger
from raytune.rewards.attempt import Attempt, describe
from raytune.rewards.base import RewardFunction
from raytune.rewards.builtin import BUILT_INS, listed
from raytune.rewards.judge import OWN_SLOTS

log = get_logger(__name__)

ALWAYS = ("completions", "prompts", "completion_ids", "log_metric", "log_extra")
"""What every function can have, whatever the data's columns are."""

TRAINER_STATE = "trainer_state"
"""TRL gives its functions the state of its Trainer, which nobody has here."""

Call = Callable[..., Any]

SIGNATURE = "A reward function is f(completions, **columns) -> list[float | None]; it is called by keyword."


def load_rewards(
    cfg: RewardConfig, *, columns: Collection[str] | None = None, max_length: int = 1024
) -> list[RewardFunction]:
    """The functions of reward_funcs, and with reward_model_type api the reward server after them as "api".

    Each process loads its own: functions hold locks and processes and cannot be sent.

    Args: columns: those of the prompts' rows; None if they are not known yet, then they are not checked.
    max_length: most tokens in an answer.
    Errors: ConfigError that says which function and why: not found, not callable, a signature that cannot be called
    with these columns, a setting that it needs, weights of another number. RewardUnavailable from `code`.
    """
    specs = listed(cfg)
    weights = weights_of(cfg, specs)
    have = None if columns is None else {*ALWAYS, *columns}
    names = _names(specs)
    calls = [load_function(spec, cfg, have, max_length) for spec in specs]
    return [
        RewardFunction(name, call, weight, accepts=accepted(call), awaits=is_async(call))
        for name, call, weight in zip(names, calls, weights, strict=True)
    ]


def weights_of(cfg: RewardConfig, specs: Sequence[str]) -> tuple[float, ...]:
    """The weight of each of the functions; 1 where none is given. Errors: ConfigError for another number of them."""
    weights = cfg.reward_weights or (1.0,) * len(specs)
    if len(weights) != len(specs):
        raise ConfigError(
            f"{len(weights)} reward_weights for {len(specs)} reward functions ({', '.join(specs)})",
            fix="Give each function a weight, in the same order.",
        )
    if specs and not any(weights):
        raise ConfigError("all reward_weights are 0: no answer would have a reward", fix="Give one function a weight.")
    return weights


def load_function(spec: str, cfg: RewardConfig, have: Collection[str] | None, max_length: int) -> Call:
    """One function, checked against the columns there are. Raises ConfigError."""
    build = BUILT_INS.get(spec)
    if build is not None:
        built = build(cfg, max_length)
        _check_columns(spec, built.columns, have)
        _check_slots(built.slots, have)
        return built.call
    call = _from_file(spec) if ".py:" in spec else _from_module(spec)
    return _checked(spec, call, have)


def _from_file(spec: str) -> object:
    """The function of "folder/file.py:function"; the file is run once, as a module of its own."""
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ConfigError("the file of a reward function does not exist", where=str(path), fix=f"Mend '{spec}'.")
    # A name that no package and no other file has; pickle looks up the classes in it by it.
    module_name = f"reward_file_{re.sub(r'[^0-9a-zA-Z]', '_', str(path))}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    with Attempt() as attempt:
        module_spec.loader.exec_module(module)
    if attempt.raised is not None:
        raise ConfigError(f"the file of a reward function does not run: {describe(attempt.raised)}", where=str(path))
    if name not in vars(module):
        raise ConfigError(
            f"there is no '{name}' in the file of a reward function", where=str(path), fix=_near(name, module)
        )
    return vars(module)[name]


def _from_module(spec: str) -> object:
    """The function of "package.module:function" or "package.module.function"."""
    if not spec.replace(":", ".").replace(".", "_").isidentifier() or not {":", "."} & set(spec):
        near = get_close_matches(spec, BUILT_INS, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"no reward function '{spec}'",
            fix=f"{hint}Built in are {', '.join(BUILT_INS)}; others are package.module:function or file.py:function.",
        )
    with Attempt() as attempt:
        return pkgutil.resolve_name(spec)
    raise ConfigError(
        f"the reward function '{spec}' cannot be imported: {describe(attempt.raised)}",
        fix="Its package must be installed, or on PYTHONPATH, on every node; or name its file: file.py:function.",
    )


def _near(name: str, module: object) -> str | None:
    near = get_close_matches(name, vars(module), n=1)
    return f"Did you mean '{near[0]}'?" if near else None


def _check_columns(spec: str, needed: Sequence[str], have: Collection[str] | None) -> None:
    missing = [] if have is None else [column for column in needed if column not in have]
    if have is not None and missing:
        named = ", ".join(f"'{column}'" for column in missing)
        raise ConfigError(
            f"the reward function '{spec}' needs the column {named}, which the prompts do not have",
            fix=f"They have {', '.join(sorted(set(have) - set(ALWAYS))) or 'no columns of their own'}.",
        )


def _check_slots(slots: Sequence[str], have: Collection[str] | None) -> None:
    """Refuse a {word} of judge_prompt that is nearly a slot; warn of one that may have been meant as one."""
    known = sorted({*OWN_SLOTS, *(have or ())} - {"completions"})
    text = [] if have is None else [word for word in slots if word not in known]
    for word in text:
        near = get_close_matches(word, known, n=1, cutoff=0.75)
        if near:
            raise ConfigError(
                f"judge_prompt has a slot {{{word}}}, and the prompts have no such column",
                fix=f"Did you mean '{{{near[0]}}}'? Text that is no slot has spaces in its braces: '{{ {word} }}'.",
            )
    named = [f"{{{word}}}" for word in text if word.isidentifier()]
    if named:
        log.warning("judge_prompt: the prompts have no column %s; such braces stay as they are", ", ".join(named))


def _checked(spec: str, call: object, have: Collection[str] | None) -> Call:
    """The function, if it can be called by keyword with answers and the columns that there are."""
    if not callable(call) or inspect.isclass(call):
        kind = "a class" if inspect.isclass(call) else f"a {type(call).__name__}"
        raise ConfigError(f"'{spec}' is {kind}, no reward function", fix=SIGNATURE)
    try:
        parameters = inspect.signature(call).parameters.values()
    except ValueError:
        raise ConfigError(f"'{spec}' does not say what it takes", fix=SIGNATURE) from None
    shown = f"{spec}{inspect.signature(call)}"
    if any(one.kind is one.POSITIONAL_ONLY and one.default is one.empty for one in parameters):
        raise ConfigError(f"the reward function '{spec}' has arguments without a keyword", where=shown, fix=SIGNATURE)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    by_keyword = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if not takes_any and "completions" not in by_keyword:
        raise ConfigError(f"the reward function '{spec}' takes no completions", where=shown, fix=SIGNATURE)
    needed = [name for name, one in by_keyword.items() if one.default is one.empty]
    if TRAINER_STATE in needed and TRAINER_STATE not in (have or ()):
        raise ConfigError(
            f"the reward function '{spec}' needs TRL's trainer_state, which there is none of here",
            where=shown,
            fix="Rewards do not know the step they are for: do without it, or make it trainer_state=None.",
        )
    _check_columns(spec, needed, have)
    return call


def accepted(call: Call) -> frozenset[str] | None:
    """The arguments that a function names, None if it takes any."""
    parameters = inspect.signature(call).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return frozenset(one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))


def is_async(call: Call) -> bool:
    """Whether calling gives something to await: an async function, or an object whose call is one."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


def _names(specs: Sequence[str]) -> list[str]:
    """What functions are called in logs: their own last name, or what the config says where two have the same.

    Raises ConfigError for a function that is listed twice.
    """
    twice = [spec for spec, count in Counter(specs).items() if count > 1]
    if twice:
        raise ConfigError(f"the reward function '{twice[0]}' is listed twice", fix="Give it a weight instead.")
    short = [spec.replace(":", ".").rpartition(".")[2] for spec in specs]
    return [spec if short.count(name) > 1 else name for name, spec in zip(short, specs, strict=True)]
