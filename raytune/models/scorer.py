"""A trained reward model in use: rows of prompt and answer in, one score each out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytune.config.adapter import AdapterConfig
from raytune.config.model import ModelConfig
from raytune.data.collate import collate
from raytune.errors import ModelError
from raytune.models.adapters import attach, merge
from raytune.models.embedded import resolve_model_path
from raytune.models.folder import adapter_path
from raytune.models.loader import load_model
from raytune.models.logprobs import label_outputs
from raytune.models.tokenizer import has_tokenizer, load_tokenizer
from raytune.models.values import FILE, ValueHead, load_value_head
from raytune.types import IGNORE_INDEX


class RewardScorer:
    """Scores rows by their last token.

    Args: model: without adapters, in evaluation mode. max_tokens: padded tokens of one pass.
    """

    def __init__(self, model: Any, head: ValueHead, *, device: torch.device, max_tokens: int = 4096) -> None:
        self.model, self.head = model.to(device).eval(), head.to(device)
        self.device, self.max_tokens = device, max_tokens

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores of rows of token ids, prompt and answer together, in their order. ValueError for an empty row."""
        if any(not len(row) for row in rows):
            raise ValueError("a row without tokens has no score")
        found = [0.0] * len(rows)
        for part in self._parts([len(row) for row in rows]):
            for number, score in zip(part, self._pass([rows[number] for number in part]), strict=True):
                found[number] = score
        return found

    def _parts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Row numbers by pass: rows of similar length together."""
        parts: list[list[int]] = []
        for number in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= self.max_tokens:
                parts[-1].append(number)
            else:
                parts.append([number])
        return parts

    def _pass(self, rows: Sequence[Sequence[int]]) -> list[float]:
        marked = []
        for row in rows:
            ids = np.asarray(row, dtype=np.int64)
            labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
            labels[-1] = 0
            marked.append({"input_ids": ids, "labels": labels})
        batch = collate(marked, pad_id=0).to(self.device)
        head = self.model.get_output_embeddings()
        outputs = label_outputs(
            self.model, head, self.model.config, batch, value_head=self.head, logits=False, last=True
        )
        assert outputs.values is not None
        return outputs.values.tolist()


def load_scorer(
    cfg: ModelConfig,
    adapters: Sequence[str] = (),
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    cutoff_len: int = 2048,
    max_tokens: int = 4096,
) -> RewardScorer:
    """Load what `stage: rm` saved: a whole model, or adapters (the last one with the head) on the model they belong to.

    Args: cfg: its model_name_or_path is the reward model, or the base of `adapters`.
    Raises: ModelError for a folder without a value head.
    """
    source = Path(adapter_path(adapters[-1], None) if adapters else resolve_model_path(cfg.model_name_or_path))
    if not (source / FILE).is_file():
        raise ModelError(
            f"{source} is no reward model: it has no {FILE}", fix="Name the output folder of a run with stage: rm."
        )
    model: Any = load_model(cfg, dtype=dtype, cutoff_len=cutoff_len)
    if adapters:
        chosen = AdapterConfig(finetuning_type="lora", adapter_name_or_path=tuple(adapters))
        model = merge(attach(model, chosen, trainable_dtype=dtype, is_trainable=False))
    head = ValueHead(int(model.config.get_text_config().hidden_size), std=0.0)
    load_value_head(head, source)
    return RewardScorer(model, head, device=device or torch.device("cpu"), max_tokens=max_tokens)


def check_same_tokenizer(policy: ModelConfig, reward: ModelConfig, adapters: Sequence[str] = ()) -> None:
    """A reward model reads the policy's token ids. Raises ModelError when those mean other texts to it.

    Args: adapters: folders of the reward model's; the tokenizer that the last one was trained with counts, if it is
    there.
    """
    folder = Path(adapters[-1]) if adapters else None
    if folder is not None and has_tokenizer(folder):
        reward = reward.model_copy(update={"model_name_or_path": str(folder)})
    if reward == policy:
        return
    if load_tokenizer(policy).get_vocab() != load_tokenizer(reward).get_vocab():
        raise ModelError(
            f"the reward model {reward.model_name_or_path} has another tokenizer than {policy.model_name_or_path}",
            fix="Train a reward model on the policy's model, or serve this one with reward_model_type: api.",
        )
