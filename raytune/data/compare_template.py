"""What the user of a named template should know: where it parts from the tokenizer's own chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from raytune.data.choice import Choice
from raytune.data.choose_template import choose_template, write_probes, writes_tools
from raytune.data.probes import TALKS, THOUGHTS, TOOLS, WITH_SYSTEM
from raytune.data.template import Template, load_template, own_template, with_settings
from raytune.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raytune.config.template import TemplateConfig

_PROBES = {**TALKS, **TOOLS}
_LAST_ANSWERS = [sample for sample in (*WITH_SYSTEM.values(), *THOUGHTS.values()) if len(sample.messages) == 2]
_PROMPT = " (prompt)"
_BEFORE, _AFTER = 12, 24  # tokens that are shown of a difference
_AUTO = "Leave template out (or say auto) to write what the chat template writes"

Both = tuple[list[int], list[int]]
"""The tokens of a probe: (by the named template, by the chat template)."""


def settle_template(cfg: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> Choice:
    """The template of a run with what its user should know; what load_template returns, and raises."""
    if cfg.template is None or cfg.template == "auto":
        return choose_template(tokenizer, cfg)
    template = load_template(cfg.template, tokenizer, cfg)
    return compare_template(template, tokenizer, cfg)


def compare_template(template: Template, tokenizer: PreTrainedTokenizerBase, cfg: TemplateConfig) -> Choice:
    """Compare a named template with the tokenizer's chat template, probe by probe.

    Tools are compared where both know them: where the chat template writes them and the template names a tool format.
    The named template writes with a tokenizer that is fitted to it, as in training; the chat template with the given
    one, as those who know nothing of this run do.
    Returns: the template with a warning that shows the first difference. Differences that have a reason (the default
    system prompt, thoughts of older answers) are said, without a warning.
    """
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        return Choice(template)
    own = with_settings(own_template(tokenizer), cfg)
    fitted = deepcopy(tokenizer)
    template.fix_tokenizer(fitted)
    probes = _PROBES if template.tool_format != "default" and writes_tools(own, tokenizer) else TALKS
    said, left = _explained(_written(probes, template, fitted, own, tokenizer), template, fitted)
    if not left:
        return Choice(template, said)
    probe = next(iter(left))
    where, ours, theirs = _difference(*left[probe], fitted)
    if template.name == "default":
        warning = (
            "template: default is the fixed 'Human: ... Assistant: ...' format and not the model's: the tokenizer has "
            f"a chat template, which writes {theirs} where default writes {ours} ({probe}). auto is what matches the "
            "model: leave template out"
        )
    else:
        warning = (
            f"template {template.name} disagrees with the tokenizer's chat template in {len(left)} of "
            f"{2 * len(probes)} probes. First in {probe}, {where}: {ours} against {theirs} of the chat "
            f"template. {_AUTO}, or keep {template.name} if the model is always asked with it too"
        )
    return Choice(template, said, (warning,))


def _written(
    probes: Mapping[str, Sample],
    template: Template,
    fitted: PreTrainedTokenizerBase,
    own: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Both]:
    """The rows and prompts of the probes that both templates take."""
    samples = list(probes.values())
    ours, theirs = write_probes(samples, template, fitted), write_probes(samples, own, tokenizer)
    found: dict[str, Both] = {}
    # Rows, rows under mask_history, prompts: the second are of no interest here.
    for kind, offset in (("", 0), (_PROMPT, 2 * len(samples))):
        for number, name in enumerate(probes):
            mine, other = ours[offset + number], theirs[offset + number]
            if mine is not None and other is not None:
                ids = mine.input_ids[:-1] if template.efficient_eos and not kind else mine.input_ids
                found[name + kind] = (ids, other.input_ids)
    return found


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _explained(
    written: Mapping[str, Both], template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[str, dict[str, Both]]:
    """(what to say of the differences that have a reason, the differences that have none)."""
    left = {name: both for name, both in written.items() if both[0] != both[1]}
    last = [name for name in written if _sample(name) in _LAST_ANSWERS]
    with_system = [name for name in written if _sample(name).system]
    said: list[str] = []
    words = template.thought_words
    # Where the two agree on the last answer, thoughts that differ are those of older ones.
    if words and last and not left.keys() & last:
        kept = {name: both for name, both in left.items() if not _same_but_thoughts(both, words, tokenizer)}
        said += ["older answers keep their thoughts, or have empty ones"] if len(kept) < len(left) else []
        left = kept
    # Where they agree as soon as there is a system prompt, it is the default one that differs.
    if left and with_system and not left.keys() & with_system:
        _, ours, theirs = _difference(*next(iter(left.values())), tokenizer)
        said.append(f"rows without a system prompt have another default one ({ours} against {theirs})")
        left = {}
    if not said:
        return "", left
    return f"template {template.name} is not the tokenizer's chat template in this: {'; '.join(said)}", left


def _sample(name: str) -> Sample:
    return _PROBES[name.removesuffix(_PROMPT)]


def _same_but_thoughts(both: Both, words: tuple[str, str], tokenizer: PreTrainedTokenizerBase) -> bool:
    begin, end = (re.escape(word.strip()) for word in words)
    thought = re.compile(f"(?:{begin}(?:(?!{end}).)*)?{end}\\s*", re.DOTALL)
    ours, theirs = (thought.sub("", _decoded(ids, tokenizer)) for ids in both)
    return ours == theirs


def _difference(ours: list[int], theirs: list[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """(where the two part, how ours goes on, how theirs does)"""
    start = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(ours), len(theirs)) if start is None else start
    before = _decoded(ours[max(0, start - _BEFORE) : start], tokenizer)
    shown = (_decoded(ids[start : start + _AFTER], tokenizer) for ids in (ours, theirs))
    more = ("..." if len(ids) > start + _AFTER else "" for ids in (ours, theirs))
    mine, other = (repr(text + dots) for text, dots in zip(shown, more, strict=True))
    return f"after {before!r}" if start else "at the start", mine, other
