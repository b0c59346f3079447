"""Drawing answers from a transformers model, token by token.

All answers to one prompt are one batch; they have the same length until they end, so nothing is ever padded, and a
group depends on nothing that is drawn beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raytune.stages.samples import Completion, Finish, Sampling, VersionSpan


@dataclass(slots=True)
class _Row:
    """One answer in the making: its tokens, their log-probs, and the weights they were drawn from."""

    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish = "length"

    def completion(self) -> Completion:
        return Completion(
            ids=np.array(self.ids, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            mask=np.ones(len(self.ids), np.bool_),
            versions=spans_of(self.versions),
            finish=self.finish,
        )


def spans_of(versions: Sequence[int]) -> tuple[VersionSpan, ...]:
    """Runs of equal versions."""
    cuts = [0, *(i for i in range(1, len(versions)) if versions[i] != versions[i - 1]), len(versions)]
    return tuple(VersionSpan(versions[a], a, b) for a, b in pairwise(cuts) if b > a)


def log_policy(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs of the behaviour policy: after temperature and truncation. [B, V] to [B, V] float32.

    A temperature of 0 takes the likeliest token; its log-prob is that at temperature 1, as in vLLM.
    """
    scores = logits.float()
    if sampling.temperature == 0:
        return scores.log_softmax(-1)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(-1, descending=True)
        shares = ordered.softmax(-1)
        # A token stays if those before it do not reach top_p yet, so that the first always stays.
        cut = shares.cumsum(-1) - shares >= sampling.top_p
        scores = scores.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -torch.inf)
    return scores.log_softmax(-1)


def draw_answers(
    model: Any,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    count: int,
    seed: int,
    limit: int,
    between: Callable[[], int],
    decode: Callable[[Sequence[int]], str] | None,
) -> list[Completion]:
    """`count` answers to a prompt; answer i draws from a generator of seed `seed` + i.

    Args: between: called before each forward pass; it may change the model's weights, and returns their version.
    decode: ids to text, for stop strings.
    """
    rows = [_Row(torch.Generator().manual_seed(seed + place)) for place in range(count)]
    alive, cache, version = rows, None, -1
    for _ in range(limit):
        newest = between()
        if cache is None or newest != version:
            # After an update the cache holds keys of older weights, so it is computed anew.
            logits, cache = _prefill(model, prompt, alive)
            version = newest
        else:
            logits, cache = _forward(model, torch.tensor([[row.ids[-1]] for row in alive]), cache)
        kept = _extend(alive, log_policy(logits, sampling), sampling, version, decode)
        if not kept:
            break
        if len(kept) < len(alive):
            cache.batch_select_indices(torch.tensor(kept))
            alive = [alive[i] for i in kept]
    return [row.completion() for row in rows]


def _prefill(model: Any, prompt: Sequence[int], rows: list[_Row]) -> tuple[Tensor, Any]:
    """Last logits [B, V] and the cache of the prompt and what was drawn; a bare prompt goes through once."""
    if rows[0].ids:
        return _forward(model, torch.tensor([[*prompt, *row.ids] for row in rows]), None)
    logits, cache = _forward(model, torch.tensor([list(prompt)]), None)
    cache.batch_repeat_interleave(len(rows))
    return logits.expand(len(rows), -1), cache


def _forward(model: Any, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
    with torch.no_grad():
        out = model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].cpu(), out.past_key_values


def _extend(
    rows: list[_Row],
    logprobs: Tensor,
    sampling: Sampling,
    version: int,
    decode: Callable[[Sequence[int]], str] | None,
) -> list[int]:
    """Give each row a token; returns places of those that go on."""
    kept = []
    for place, row in enumerate(rows):
        token = _pick(logprobs[place], sampling, row.generator)
        row.ids.append(token)
        row.logprobs.append(float(logprobs[place, token]))
        row.versions.append(version)
        if token in sampling.stop_ids or (sampling.stop and decode is not None and _stopped(row, sampling, decode)):
            row.finish = "stop"
        else:
            kept.append(place)
    return kept


def _pick(logprobs: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logprobs.argmax())
    return int(torch.multinomial(logprobs.exp(), 1, generator=generator))


def _stopped(row: _Row, sampling: Sampling, decode: Callable[[Sequence[int]], str]) -> bool:
    """Whether the newest token completes a stop string; a token is at least a byte, so few tokens are looked at."""
    longest = max(len(text.encode()) for text in sampling.stop)
    before = decode(row.ids[-longest - 4 : -1])
    return any(text in decode(row.ids[-longest - 4 :]) and text not in before for text in sampling.stop)
