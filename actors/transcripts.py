"""From scored groups to transcripts: fetches the tokens of a few groups each n steps and turns them into text."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from raytune.data.decoder import Decodes
from raytune.log import get_logger
from raytune.monitors.transcripts import Transcript, TranscriptWriter, Turn
from raytune.rewards.base import Score, failed
from raytune.stages.samples import Completion, Group, ScoredGroup

log = get_logger(__name__)

_DEADLINE = 60.0


class Transcriber:
    """Called by the loop after each step.

    Args: decoder: reference to what decodes the policy's tokens. every: steps between samples. num_groups: groups of a
    sample, of each of which the best and the worst answer are shown.
    """

    def __init__(self, writer: TranscriptWriter, decoder: Any, *, every: int, num_groups: int = 4) -> None:
        self._writer, self._source = writer, decoder
        self._every, self._num_groups = every, num_groups
        self._decoder: Decodes | None = None

    def rewind(self, step: int) -> None:
        """Drop what was written of later steps."""
        self._writer.rewind(step)

    def finish(self) -> None:
        """Flush and close."""
        self._writer.finish()

    def __call__(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Write a sample if one is due. What cannot be fetched is left out with a warning: it is only shown."""
        if not groups or (step - 1) % self._every:
            return
        chosen = spread(groups, self._num_groups)
        try:
            if self._decoder is None:
                self._decoder = ray.get(self._source, timeout=_DEADLINE)
            payloads: list[Group] = ray.get([group.payload for group in chosen], timeout=_DEADLINE)
        except (RayError, GetTimeoutError) as error:
            log.warning("no transcripts of step %s: %s", step, type(error).__name__)
            return
        made = [transcribe(one, tokens, self._decoder) for one, tokens in zip(chosen, payloads, strict=True)]
        self._writer.write(step, [transcript for part in made for transcript in part])


def spread(groups: Sequence[ScoredGroup], count: int) -> list[ScoredGroup]:
    """`count` groups, or as many as there are, evenly from the first to the last."""
    if count >= len(groups):
        return list(groups)
    return [groups[place * len(groups) // count] for place in range(count)]


def transcribe(scored: ScoredGroup, group: Group, decoder: Decodes) -> list[Transcript]:
    """The best and the worst answer of a group, one where they are the same; unscorable ones are the worst."""
    ranked = sorted(range(len(scored.rewards)), key=lambda place: _or_least(scored.rewards[place]))
    return [_transcript(scored, group, place, decoder) for place in dict.fromkeys((ranked[-1], ranked[0]))]


def _or_least(reward: float) -> float:
    return -math.inf if math.isnan(reward) else reward


def _transcript(scored: ScoredGroup, group: Group, place: int, decoder: Decodes) -> Transcript:
    answer, reward, table = group.completions[place], scored.rewards[place], scored.table
    return Transcript(
        number=scored.number,
        row=scored.row,
        prompt=str(decoder.decode(group.prompt.ids.tolist(), skip_special_tokens=False)),
        answer=str(decoder.decode(answer.ids.tolist(), skip_special_tokens=False)),
        reward=_known(reward),
        parts={name: _known(column[place]) for name, column in zip(table.names, table.scores, strict=True)},
        versions=tuple((span.version, span.start, span.end) for span in answer.versions),
        finish=answer.finish,
        length=len(answer.ids),
        extra={name: values[place] for name, values in table.extra.items()},
        turns=() if answer.mask.all() else turns_of(answer, decoder),
    )


def _known(score: Score) -> Score:
    return None if failed(score) else score


def turns_of(answer: Completion, decoder: Decodes) -> tuple[Turn, ...]:
    """What policy and environment wrote, in turn."""
    cuts = [0, *(np.flatnonzero(np.diff(answer.mask)) + 1).tolist(), len(answer.ids)]
    return tuple(
        (
            "policy" if answer.mask[start] else "environment",
            str(decoder.decode(answer.ids[start:end].tolist(), skip_special_tokens=False)),
        )
        for start, end in pairwise(cuts)
    )
