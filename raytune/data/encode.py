"""Samples become token ids and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raytune.data.budget import row_length, split_budget
from raytune.data.own_template import render_own
from raytune.data.pairs import encode_pairs
from raytune.data.pretrain import encode_texts
from raytune.data.prompts import encode_prompts
from raytune.data.render import Turn, render_turns
from raytune.data.template import Template
from raytune.data.tokenize import Guard, join_elements, special_ids, tokenize
from raytune.errors import DataError
from raytune.types import IGNORE_INDEX, PAIR_STAGES, PROMPT_STAGES, Encoded, Sample, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raytune.config.data import DataConfig

Pair = tuple[list[int], list[int]]
"""(source ids, target ids) of one turn."""


def encode_samples(
    samples: Sequence[Sample],
    stage: Stage,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    counts: Counter[str] | None = None,
) -> list[Encoded]:
    """Encode a block of samples; the tokenizer is the one `template.fix_tokenizer` has seen.

    Args: counts: grows by "truncated", the rows that lost tokens to cutoff_len.
    Returns: one row per sample for sft (not packed yet); for pt the blocks that the joined texts are cut into, or one
        row per text under packing: false; for ppo and grpo one prompt per sample; for rm
        one packed row of two per sample.
    Raises: DataError.
    """
    counts = Counter() if counts is None else counts
    if not samples:
        return []
    if stage == "pt":
        return encode_texts(samples, template, tokenizer, data, row_length(data, template.compat), counts)
    if stage in PAIR_STAGES:
        return encode_pairs(samples, template, tokenizer, limit=data.cutoff_len, counts=counts)
    if stage in PROMPT_STAGES:
        return encode_prompts(samples, template, tokenizer, limit=data.cutoff_len)
    if template.efficient_eos and data.train_on_prompt:
        raise DataError(
            f"template '{template.name}' has no end token of its own, so it cannot be used with train_on_prompt",
            fix="Set train_on_prompt: false or choose another template.",
        )
    guard = None if template.compat else Guard(tokenizer)
    if guard is not None:
        samples = [guard.hide_sample(sample) for sample in samples]
    if template.own:
        conversations = render_own(samples, template, tokenizer)
    else:
        conversations = [render_turns(sample, template, mask_history=data.mask_history) for sample in samples]
    cutoff = row_length(data, template.compat)
    eos_id = _eos_id(tokenizer)
    rows: list[Encoded] = []
    for pairs in _to_ids(conversations, tokenizer, guard):
        row = label_turns(
            pairs,
            cutoff,
            eos_id=eos_id,
            train_on_prompt=data.train_on_prompt,
            mask_history=data.mask_history,
            efficient_eos=template.efficient_eos,
            compat=template.compat,
        )
        kept = len(row.input_ids) - template.efficient_eos
        counts["truncated"] += kept < sum(len(source) + len(target) for source, target in pairs)
        rows.append(row)
    return rows


def label_turns(
    pairs: Sequence[Pair],
    cutoff: int,
    *,
    eos_id: int,
    train_on_prompt: bool = False,
    mask_history: bool = False,
    efficient_eos: bool = False,
    compat: bool = False,
) -> Encoded:
    """Join turns into one row of at most `cutoff` tokens; the turns that do not fit are left out.

    With mask_history the last turn has the first right to the budget and is the only one trained.
    """
    total = 1 if efficient_eos else 0
    parts: list[Pair] = []
    for number, (source, target) in enumerate(reversed(pairs) if mask_history else pairs):
        if total >= cutoff:
            break
        num_source, num_target = split_budget(len(source), len(target), cutoff - total)
        total += num_source + num_target
        source, target = source[:num_source], target[:num_target]
        labels = source if train_on_prompt else [IGNORE_INDEX] * num_source
        # The next turn's first token is where the answer before it ends. Under mask_history `number` counts
        # backwards and the answer before is not trained, which LLaMA-Factory overlooks.
        if efficient_eos and number and source and (compat or not mask_history):
            labels = [eos_id, *labels[1:]]
        trained = [IGNORE_INDEX] * num_target if mask_history and number else target
        parts.append((source + target, labels + trained))
    if mask_history:
        parts.reverse()
    row = Encoded([], [])
    for ids, labels in parts:
        row.input_ids.extend(ids)
        row.labels.extend(labels)
    if efficient_eos:
        row.input_ids.append(eos_id)
        row.labels.append(eos_id)
    return row


def _to_ids(
    conversations: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase, guard: Guard | None
) -> list[list[Pair]]:
    sides = (side for turns in conversations for turn in turns for side in turn)
    ids = tokenize((element for side in sides for element in side if isinstance(element, str)), tokenizer, guard)
    special = special_ids(tokenizer)
    return [
        [(join_elements(source, ids, special), join_elements(target, ids, special)) for source, target in turns]
        for turns in conversations
    ]


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end-of-sequence token", fix="Call Template.fix_tokenizer first.")
    return tokenizer.eos_token_id
