"""One rank's share of the work, without a word of Ray: build the model, take steps, evaluate, save.

row store -> global batch at a position -> this rank's micro-batches -> engine -> sums back to the driver
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from raytune.config.run import RunConfig
from raytune.data.batches import PAD_MULTIPLE, Indices, Position, epoch_order, rows_per_step, split_batch
from raytune.data.collate import Batch, collate, join
from raytune.data.inputs import DataOptions, ready_template
from raytune.data.prepared import PreparedData
from raytune.data.store import RowStore
from raytune.engine.base import Engine, Loss, NonFiniteGradient
from raytune.engine.build import ENGINES, autocast_dtype, choose_engine, compute_dtype, trainable_dtype
from raytune.engine.checkpoint import write_json
from raytune.engine.disk import writes_to
from raytune.engine.memory import ModelShape, activation_bytes, needs_checkpointing
from raytune.errors import CheckpointError, TrainError
from raytune.log import get_logger
from raytune.losses.reduce import LossSums
from raytune.models import segment_attention
from raytune.models.adapters import attach
from raytune.models.fused_lora import fuse_lora, trains_fused_only
from raytune.models.loader import count_parameters, load_model, upcast_head_output, upcast_norms
from raytune.models.neftune import add_noise
from raytune.models.tokenizer import load_tokenizer
from raytune.models.vocab import grows_vocabulary
from raytune.stages import pt, sft
from raytune.stages.weights import load_adapter_weights, save_weights
from raytune.types import IGNORE_INDEX

log = get_logger(__name__)

STAGE_LOSSES = {"sft": sft.build_loss, "pt": pt.build_loss}
# What a forward and backward pass costs whatever it holds, in tokens: on a CPU a fit to SmolLM2's step times (0.18 s
# + tokens / 285 on one core); on a GPU the launch of its kernels, some milliseconds.
_FIXED_TOKENS = {"cpu": 50, "cuda": 2000}
# Up to this length our attention on a CPU is faster than the fused kernel (a third of a row's attention at 256 tokens),
# and the probabilities that it keeps for the gradient are small.
_SEGMENT_LENGTH = 512
_SMALL_STATE = "small_state.json"
_OPTIMIZER = "optimizer"


# Made by RankTrainer, added up over ranks by actors.group.
@dataclass(frozen=True, slots=True)
class RankSums:
    """One rank's part of a step or an evaluation; sums over its labelled tokens.

    Example: RankSums(loss=912.5, correct=310, num_label_tokens=450, num_tokens=1024, grad_norm=0.8, learning_rate=2e-4)
    """

    loss: float
    correct: int
    num_label_tokens: int
    num_tokens: int
    num_rows: int
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    skipped: bool = False


# Made by RankTrainer, read by raytune.launch.
@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the driver says about the model.

    Example: ModelFacts(2442240, 136957248, "single", "cpu", False, {"": 109})
    """

    num_trainable: int
    num_parameters: int
    engine: str
    device: str
    checkpointing: bool
    eval_rows: dict[str, int]


class RankTrainer:
    """One rank. `build` loads the model, `start` attaches data, optimizer and state; then steps may be taken.

    Args: rank, world_size: this process's place; a process group exists when world_size > 1.
    """

    def __init__(self, cfg: RunConfig, *, rank: int, world_size: int, device: torch.device) -> None:
        self.cfg, self.rank, self.world_size, self.device = cfg, rank, world_size, device
        self.engine_name = choose_engine(cfg.cluster.engine, world_size)
        self.loss: Loss = STAGE_LOSSES[cfg.train.stage](label_smoothing=cfg.train.label_smoothing_factor)

    def build(self, checkpoint: Path | None) -> None:
        """Load tokenizer and model and mark what trains; weights come from `checkpoint` when there is one."""
        cfg = self.cfg
        if cfg.train.full_determinism:
            torch.use_deterministic_algorithms(True)
        if cfg.precision.tf32 is not None:
            torch.set_float32_matmul_precision("high" if cfg.precision.tf32 else "highest")
        _seed(cfg.train.seed)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(cfg.model)
        ready_template(DataOptions.of(cfg), self.tokenizer)
        model = self._load_base(checkpoint)
        # Random adapter weights must be the same on every rank, whatever was drawn while loading.
        _seed(cfg.train.seed)
        self.model: Any = attach(
            model,
            cfg.adapter,
            trainable_dtype=trainable_dtype(cfg.precision),
            train_embeddings=grows_vocabulary(cfg.model),
        )
        for param in self.model.parameters():
            if not param.requires_grad and param.is_floating_point():
                param.data = param.data.to(compute_dtype(cfg.precision))
        self._wide = upcast_norms(self.model) if cfg.precision.upcast_layernorm else []
        if cfg.precision.upcast_lmhead_output:
            upcast_head_output(self.model)
        if checkpoint is not None and isinstance(self.model, PeftModel):
            load_adapter_weights(self.model, checkpoint)
        fuse_lora(self.model)
        if cfg.train.neftune_noise_alpha:
            add_noise(self.model, alpha=cfg.train.neftune_noise_alpha)
        if cfg.model.print_param_status:
            for name, param in self.model.named_parameters():
                log.info("%s %s %s trains: %s", name, tuple(param.shape), param.dtype, param.requires_grad)

    def _load_base(self, checkpoint: Path | None) -> Any:
        """The model under the adapter; a run without adapters finds its own weights in the checkpoint."""
        cfg = self.cfg
        model, dtype = cfg.model, compute_dtype(cfg.precision)
        if checkpoint is not None and cfg.adapter.finetuning_type in ("full", "freeze"):
            # Trained weights are kept in the trainable dtype; a narrower one on the way would change them.
            model, dtype = (
                model.model_copy(update={"model_name_or_path": str(checkpoint)}),
                trainable_dtype(cfg.precision),
            )
        return load_model(model, dtype=dtype, cutoff_len=cfg.data.cutoff_len)

    def start(self, data: PreparedData, *, total_steps: int, checkpoint: Path | None) -> ModelFacts:
        """Open the data, wrap the model in its engine and load optimizer state from `checkpoint`."""
        assert data.train is not None
        self.train_rows = RowStore.open(data.train)
        self.eval_rows = {name: RowStore.open(path) for name, path in data.eval.items()}
        self._order: tuple[int, Indices] = (-1, np.empty(0, dtype=np.int64))
        self._choose_attention()
        checkpointing = self._set_checkpointing()
        num_trainable, num_parameters = count_parameters(self.model)
        self.model.train()
        self.engine: Engine = ENGINES[self.engine_name](
            self.model,
            self.cfg.optim,
            total_steps=total_steps,
            device=self.device,
            autocast=self._autocast(),
            world_size=self.world_size,
            wide=self._wide,
        )
        if checkpoint is not None:
            if not (checkpoint / _SMALL_STATE).is_file():
                raise CheckpointError(
                    f"checkpoint {checkpoint} holds weights only and cannot be resumed",
                    fix="It was written with save_only_model: true. Set overwrite_output_dir: true to start anew.",
                )
            self.engine.load_state(checkpoint / _OPTIMIZER)
            self.engine.load_small_state(json.loads((checkpoint / _SMALL_STATE).read_text()))
        eval_rows = {name: len(store) for name, store in self.eval_rows.items()}
        return ModelFacts(num_trainable, num_parameters, self.engine_name, str(self.device), checkpointing, eval_rows)

    def train_step(self, step: int, position: Position) -> RankSums:
        """Do this rank's part of optimizer step `step`. All ranks must call it alike."""
        # One seed a step makes dropout and noise a function of (seed, step, rank): nothing random needs to be saved.
        _seed(self.cfg.train.seed, step, self.rank)
        rows = self.rows_at(position)
        mine = self._split(rows, self.train_rows.lengths, self.cfg.train.per_device_train_batch_size)
        scale = 1.0 / max(_num_labels(self.train_rows, rows), 1)
        total = _Totals()
        for number, part in enumerate(mine):
            batch = self._batch(self.train_rows, part)
            last = number == len(mine) - 1
            sums = self.engine.forward_backward(self.loss, batch, scale=scale if len(part) else 0.0, last=last)
            if len(part):
                total.add(sums, part, self.train_rows)
            if not math.isfinite(total.loss):
                raise self._non_finite(step, rows, total, None)
        try:
            stats = self.engine.optimizer_step()
        except NonFiniteGradient as error:
            raise self._non_finite(step, rows, total, error) from None
        return total.result(stats.grad_norm, stats.learning_rate, skipped=stats.skipped)

    def evaluate(self, name: str, start: int, stop: int) -> RankSums:
        """Sums of this rank's share of the rows from `start` to before `stop` of evaluation set `name`."""
        store = self.eval_rows[name]
        rows = np.arange(start, stop, dtype=np.int64)
        total = _Totals()
        for part in self._split(rows, store.lengths, self.cfg.train.per_device_eval_batch_size):
            batch = self._batch(store, part)
            sums = self.engine.evaluate(self.loss, batch)
            if len(part):
                total.add(sums, part, store)
        return total.result(0.0, 0.0, skipped=False)

    def metric_step(self, metric: float) -> None:
        self.engine.metric_step(metric)

    def save(self, folder: Path, *, with_state: bool) -> None:
        """Write weights (rank 0) and optimizer shards (every rank) into `folder`. Collective."""
        with writes_to(folder):
            save_weights(self.engine, folder, tokenizer=self.tokenizer if self.rank == 0 else None)
            if with_state:
                self.engine.save_state(folder / _OPTIMIZER)
                if self.rank == 0:
                    write_json(folder / _SMALL_STATE, self.engine.small_state())

    def rows_at(self, position: Position) -> Indices:
        """Row numbers of the global batch that begins at `position`."""
        train = self.cfg.train
        batch_rows = rows_per_step(train, self.world_size)
        if self._order[0] != position.epoch:
            order = epoch_order(
                self.train_rows.lengths,
                epoch=position.epoch,
                seed=train.seed if train.data_seed is None else train.data_seed,
                shuffle=not train.disable_shuffling,
                by_length=train.group_by_length,
            )
            self._order = (position.epoch, order)
        return self._order[1][position.offset : position.offset + batch_rows]

    def _split(self, rows: Indices, lengths: Indices, micro_rows: int) -> list[Indices]:
        parts = split_batch(
            rows,
            lengths,
            num_ranks=self.world_size,
            micro_rows=micro_rows,
            max_tokens=self._max_tokens,
            fixed_tokens=_FIXED_TOKENS[self.device.type],
            joined=self._joined,
        )
        return parts[self.rank]

    def _batch(self, store: RowStore, part: Indices) -> Batch:
        pad = self.tokenizer.pad_token_id
        label_pad = IGNORE_INDEX if self.cfg.dataio.ignore_pad_token_for_loss else pad
        rows = [store.row(int(row)) for row in part] or [_idle_row(pad)]
        if self._joined and len(rows) > 1:
            packed = any(len(row.get("position_ids", ())) for row in rows)
            rows = [join(rows, share_prefixes=self._share_prefixes and not packed)]
        return collate(
            rows, pad_id=pad, label_pad=label_pad, multiple=PAD_MULTIPLE, row_ids=[int(row) for row in part]
        ).to(self.device)

    def _autocast(self) -> torch.dtype | None:
        """Dtype the forward pass is cast to; frozen bfloat16 weights with fused adapters need no casting."""
        wanted = autocast_dtype(self.cfg.precision)
        shards = self.engine_name == "fsdp2"
        needless = wanted is torch.bfloat16 and not shards and trains_fused_only(self.model)
        # Norms and embeddings that were put into float32 on request would meet bfloat16 without it.
        return None if needless and not self.cfg.precision.upcast_layernorm else wanted

    def _choose_attention(self) -> None:
        """Settle `flash_attn: auto`, and whether micro-batches are joined, once the lengths of the rows are known."""
        self._max_tokens = self.cfg.train.max_tokens_per_batch
        stores = [self.train_rows, *self.eval_rows.values()]
        short = max(int(store.lengths.max()) for store in stores) <= _SEGMENT_LENGTH
        auto = self.cfg.model.flash_attn == "auto" and self.device.type == "cpu"
        segments = auto and short and segment_attention.serves(self.model)
        if segments:
            segment_attention.register()
            self.model.set_attn_implementation(segment_attention.NAME)
        # Joined rows waste nothing on padding; an attention that looks between them would eat the gain.
        self._joined = segments and self._max_tokens is not None
        # Noise and dropout are drawn for each sample by itself, also where samples begin alike.
        dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules())
        self._share_prefixes = not (dropout or self.cfg.train.neftune_noise_alpha)

    def _set_checkpointing(self) -> bool:
        wanted = self.cfg.precision.gradient_checkpointing
        enabled = self._checkpointing_needed() if wanted == "auto" else bool(wanted)
        if enabled:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return enabled

    def _checkpointing_needed(self) -> bool:
        longest = int(self.train_rows.lengths.max())
        tokens = max(
            self.cfg.train.max_tokens_per_batch or longest * self.cfg.train.per_device_train_batch_size, longest
        )
        kept = activation_bytes(
            model_shape(self.model.config),
            tokens=tokens,
            dtype_bytes=compute_dtype(self.cfg.precision).itemsize,
            checkpointing=False,
        )
        return needs_checkpointing(kept, _free_memory(self.device))

    def _non_finite(
        self, step: int, rows: Sequence[int] | Indices, total: "_Totals", error: Exception | None
    ) -> TrainError:
        shown = ", ".join(str(int(row)) for row in rows[:32]) + (" ..." if len(rows) > 32 else "")
        what = "loss is NaN or infinite" if not math.isfinite(total.loss) else f"gradient is not finite ({error})"
        return TrainError(
            f"step {step}: the {what}; training stopped before the weights changed",
            where=f"rows {shown} of the prepared training set",
            fix="Look at these rows with `raytune data show`, lower learning_rate, or use bf16 instead of fp16.",
        )


@dataclass
class _Totals:
    loss: float = 0.0
    correct: int = 0
    num_label_tokens: int = 0
    num_tokens: int = 0
    num_rows: int = 0

    def add(self, sums: LossSums, rows: Indices, store: RowStore) -> None:
        self.loss += float(sums.loss.detach())
        self.correct += int(sums.correct)
        self.num_label_tokens += sums.count
        self.num_tokens += int(store.lengths[rows].sum())
        self.num_rows += len(rows)

    def result(self, grad_norm: float, learning_rate: float, *, skipped: bool) -> RankSums:
        counts = (self.loss, self.correct, self.num_label_tokens, self.num_tokens, self.num_rows)
        return RankSums(*counts, grad_norm=grad_norm, learning_rate=learning_rate, skipped=skipped)


def model_shape(config: Any) -> ModelShape:
    """Read the sizes off a transformers config."""
    text = config.get_text_config()
    return ModelShape(text.hidden_size, text.num_hidden_layers, text.intermediate_size, text.vocab_size)


def _num_labels(store: RowStore, rows: Indices) -> int:
    """Labelled tokens of a global batch: the first token of a row is never predicted."""
    return sum(int(np.count_nonzero(store.row(int(row))["labels"][1:] != IGNORE_INDEX)) for row in rows)


def _idle_row(pad: int) -> dict[str, np.ndarray]:
    """A row for a rank that has none left but must take part in collective operations; its loss counts nothing."""
    ids = np.full(8, pad, dtype=np.int32)
    return {"input_ids": ids, "labels": ids}


def _seed(*parts: int) -> None:
    state = np.random.SeedSequence(parts).generate_state(1, dtype=np.uint64)[0]
    torch.manual_seed(int(state))
    np.random.seed(int(state) % 2**32)


def _free_memory(device: torch.device) -> int:
    """Bytes this rank may still take on its device; ranks of one host share its memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return pages // ranks
