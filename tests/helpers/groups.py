"""Groups of answers made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raytune.stages.samples import Completion, Group, Prompt, Sampling, VersionSpan


def completion(ids: Sequence[int], *, version: int = 0, mask: Sequence[bool] | None = None) -> Completion:
    """An answer of these tokens that stopped by itself."""
    drawn = [True] * len(ids) if mask is None else list(mask)
    return Completion(
        ids=np.array(ids, np.int32),
        logprobs=np.zeros(len(ids), np.float32),
        mask=np.array(drawn, np.bool_),
        versions=(VersionSpan(version, 0, len(ids)),),
        finish="stop",
    )


def text_group(
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[str],
    *,
    number: int = 0,
    prompt: str = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
    columns: Mapping[str, Any] | None = None,
    greedy: str | None = None,
) -> Group:
    """A group whose answers are these texts, each ended by <|im_end|>. Args: greedy: what they are compared with."""
    ids = [tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"] for text in answers]
    likeliest = () if greedy is None else text_group(tokenizer, [greedy]).completions
    asked = np.array(tokenizer(prompt, add_special_tokens=False)["input_ids"], np.int32)
    prompted = Prompt(number, number, asked, {"prompt": "q"} if columns is None else columns)
    return Group(prompted, tuple(completion(one) for one in ids), Sampling(), 0.5, *likeliest)
