"""Conversations that wait for their next answer become token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raytune.data.own_template import render_own_prompts
from raytune.data.render import ANSWERING, Elements, render_prompt
from raytune.data.template import Template
from raytune.data.tokenize import Guard, join_elements, special_ids, tokenize
from raytune.errors import DataError
from raytune.types import Encoded, Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    samples: Sequence[Sample], template: Template, tokenizer: PreTrainedTokenizerBase, *, limit: int
) -> list[Encoded]:
    """Encode a block of samples as prompts, one each, without labels and with their columns.

    Nothing is cut: half a question has another answer.

    Args: limit: tokens a prompt may have.
    Raises: DataError for a longer one.
    """
    rows = [
        Encoded(ids, [], columns=sample.columns)
        for ids, sample in zip(_to_ids(samples, template, tokenizer), samples, strict=True)
    ]
    for row in rows:
        if len(row.input_ids) > limit:
            raise DataError(
                f"the prompt has {len(row.input_ids)} tokens, more than cutoff_len ({limit})",
                fix="Raise cutoff_len, or drop such rows with skip_invalid: true.",
            )
    return rows


def prompt_ids(
    messages: Sequence[Message], system: str, tools: str, template: Template, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of one conversation; see Template.prompt_ids."""
    return _to_ids([Sample(tuple(messages), system, tools)], template, tokenizer)[0]


def _to_ids(samples: Sequence[Sample], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    guard = None if template.compat else Guard(tokenizer)
    if guard is not None:
        samples = [guard.hide_sample(sample) for sample in samples]
    prompts = _render(samples, template, tokenizer)
    ids = tokenize((text for part in prompts for text in part if isinstance(text, str)), tokenizer, guard)
    special = special_ids(tokenizer)
    return [join_elements(elements, ids, special) for elements in prompts]


def _render(samples: Sequence[Sample], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[Elements]:
    asked = [_without_answer(sample) for sample in samples]
    if template.own:
        return [[text] for text in render_own_prompts(asked, template, tokenizer)]
    return [
        render_prompt(sample.messages, sample.system, sample.tools, template, answer=_given_answer(whole))
        for sample, whole in zip(asked, samples, strict=True)
    ]


def _without_answer(sample: Sample) -> Sample:
    return replace(sample, messages=sample.messages[:-1]) if _given_answer(sample) else sample


def _given_answer(sample: Sample) -> Message | None:
    last = sample.messages[-1] if sample.messages else None
    return last if last is not None and last.role in ANSWERING else None
