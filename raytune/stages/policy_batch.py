"""A micro-batch of answers: what the model reads, and what the loss wants to know of each token it produced.

prompt + answer rows -> joined, prompts once -> forward pass -> numbers of the labelled tokens, back in row order

The labels of the rows are the tokens' own numbers in the micro-batch, 0 ... N - 1. Sharing prefixes reorders rows; what
comes out of the forward pass says by its labels which token it belongs to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raytune.data.batches import PAD_MULTIPLE
from raytune.data.collate import Batch, collate, join
from raytune.errors import TrainError
from raytune.losses.sequences import Sequences
from raytune.stages.interfaces import PolicySample, TokenNumbers
from raytune.stages.samples import Completion, Group
from raytune.types import IGNORE_INDEX

_IDLE = 8


@dataclass(frozen=True, slots=True)
class Micro:
    """N tokens that the policy produced, in row order, of S answers; every tensor [N] on the rank's device.

    Args: batch: for the model; its labels are numbers of tokens. rollout_logprobs: NaN where the engine could not say.
    temperature: that all of them were sampled at. num_tokens: tokens of the rows, prompts counted for each answer.
    """

    batch: Batch
    ids: Tensor
    advantages: Tensor
    returns: Tensor | None
    rollout_logprobs: Tensor
    sequences: Sequences
    temperature: float
    num_tokens: int

    def in_row_order(self, values: Tensor, numbers: Tensor) -> Tensor:
        """Put [N] numbers of the forward pass, whose labels are `numbers`, in row order."""
        return values[torch.argsort(numbers)]


# Made by PolicyRank before the first step on a rollout batch, read by its loss.
@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a micro-batch's tokens before the policy moves; [N] each, None where it is not needed."""

    logprobs: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None


def make_micro(samples: Sequence[PolicySample], *, pad_id: int, joined: bool, device: torch.device) -> Micro:
    """Build a micro-batch; without samples it is idle: one row without labels.

    Args: samples: their payload is the Group. joined: put rows behind each other, their prompts once.
    Raises: TrainError for answers that were sampled at different temperatures, or without a prompt.
    """
    groups = [_group(sample) for sample in samples]
    answers = [group.completions[sample.place] for group, sample in zip(groups, samples, strict=True)]
    rows, counts = _rows(groups, answers)
    batch = _batch(rows or [_idle_row(pad_id)], pad_id=pad_id, joined=joined)
    masks = [answer.mask for answer in answers]
    parts = {
        "ids": [answer.ids[mask].astype(np.int64) for answer, mask in zip(answers, masks, strict=True)],
        "advantages": [_per_token(s.advantage, mask) for s, mask in zip(samples, masks, strict=True)],
        "rollout": [answer.logprobs[mask] for answer, mask in zip(answers, masks, strict=True)],
    }
    if samples and all(sample.returns is not None for sample in samples):
        parts["returns"] = [
            np.asarray(s.returns, dtype=np.float32)[mask] for s, mask in zip(samples, masks, strict=True)
        ]
    tensors = {name: _tensor(arrays, np.int64 if name == "ids" else np.float32) for name, arrays in parts.items()}
    index = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Micro(
        batch.to(device),
        moved["ids"],
        moved["advantages"],
        moved.get("returns"),
        moved["rollout"],
        Sequences(index.to(device), len(counts)),
        _temperature(groups),
        sum(len(row["input_ids"]) for row in rows),
    )


def numbers_of(samples: Sequence[PolicySample], micro: Micro, known: Known) -> list[TokenNumbers]:
    """What is known of a micro-batch, answer by answer. Log-probs that a critic does not know are 0."""
    found = []
    for place, sample in enumerate(samples):
        mask = _group(sample).completions[sample.place].mask
        mine = micro.sequences.index == place
        logprobs, reference, values = (
            None if numbers is None else _spread(numbers[mine], mask)
            for numbers in (known.logprobs, known.reference, known.values)
        )
        blank = np.zeros(len(mask), dtype=np.float32)
        found.append(TokenNumbers(blank if logprobs is None else logprobs, mask, reference, values))
    return found


def known_of(samples: Sequence[PolicySample], device: torch.device) -> Known:
    """What `numbers_of` told of the answers of a micro-batch, as tensors [N]."""
    told = [sample.numbers for sample in samples if sample.numbers is not None]
    columns = [
        [(numbers.logprobs, numbers.mask) for numbers in told],
        [(numbers.reference, numbers.mask) for numbers in told],
        [(numbers.values, numbers.mask) for numbers in told],
    ]
    parts = [[values[mask] for values, mask in column if values is not None] for column in columns]
    return Known(*[_tensor(part, np.float32).to(device) if part else None for part in parts])


def _spread(values: Tensor, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Numbers of the policy's own tokens, put at their places among all T tokens of an answer; 0 elsewhere. [T]"""
    found = np.zeros(len(mask), dtype=np.float32)
    found[mask] = values.float().cpu().numpy()
    return found


def _group(sample: PolicySample) -> Group:
    assert isinstance(sample.payload, Group)
    return sample.payload


def _rows(groups: Sequence[Group], answers: Sequence[Completion]) -> tuple[list[dict[str, npt.NDArray]], list[int]]:
    rows, counts, total = [], [], 0
    for group, answer in zip(groups, answers, strict=True):
        prompt = group.prompt.ids
        if not len(prompt):
            raise TrainError(f"prompt {group.prompt.number} has no token, so nothing predicts its answers' first one")
        labels = np.full(len(prompt) + len(answer.ids), IGNORE_INDEX, dtype=np.int64)
        count = int(np.count_nonzero(answer.mask))
        labels[len(prompt) :][answer.mask] = np.arange(total, total + count)
        rows.append({"input_ids": np.concatenate([prompt, answer.ids]), "labels": labels})
        counts.append(count)
        total += count
    return rows, counts


def _batch(rows: Sequence[dict[str, npt.NDArray]], *, pad_id: int, joined: bool) -> Batch:
    if joined and len(rows) > 1:
        rows = [join(rows, share_prefixes=True)]
    return collate(rows, pad_id=pad_id, multiple=PAD_MULTIPLE)


def _idle_row(pad_id: int) -> dict[str, npt.NDArray]:
    return {
        "input_ids": np.full(_IDLE, pad_id, dtype=np.int64),
        "labels": np.full(_IDLE, IGNORE_INDEX, dtype=np.int64),
    }


def _per_token(advantage: float | npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """One number for all tokens or one for each of T: those under the mask."""
    return np.broadcast_to(np.asarray(advantage, dtype=np.float32), mask.shape)[mask]


def _tensor(arrays: Sequence[npt.NDArray], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=dtype), *arrays]).astype(dtype, copy=False))


def _temperature(groups: Sequence[Group]) -> float:
    found = {group.sampling.temperature for group in groups}
    if len(found) > 1:
        raise TrainError(f"answers of one batch were sampled at different temperatures: {sorted(found)}")
    return found.pop() if found else 1.0
