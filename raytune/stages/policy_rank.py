"""One rank's share of learning from answers, without a word of Ray: a policy, a critic, or both.

share of a rollout batch -> micro-batches -> what is known before the policy moves -> optimizer steps -> sums
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from peft import PeftModel

from raytune.config.run import RunConfig
from raytune.data.inputs import DataOptions, ready_template
from raytune.engine.base import Engine, NonFiniteGradient, StepStats
from raytune.engine.build import compute_dtype
from raytune.engine.frozen import FrozenModel
from raytune.errors import TrainError
from raytune.losses.mismatch import mismatch_metrics
from raytune.losses.reduce import MetricSums, merge
from raytune.losses.sequences import normaliser
from raytune.models.folder import find_adapters
from raytune.models.loader import count_parameters
from raytune.models.reference import frozen_copy, without_adapter
from raytune.stages.build import (
    FIXED_TOKENS,
    build_engine,
    build_model,
    choose_attention,
    engine_of,
    freeze_output_head,
    largest_batch,
    order_seed,
    seed_all,
    seed_step,
    set_checkpointing,
)
from raytune.stages.interfaces import TokenNumbers
from raytune.stages.policy_batch import Known, Micro, known_of, make_micro, numbers_of
from raytune.stages.policy_loss import LearnRule, build_loss, logprobs_of, values_of
from raytune.stages.policy_plan import Share
from raytune.stages.weights import load_engine_state, save_rank

# One answer in so many tells the divergence where nothing but the log asks for it: about 4 % of an update's time.
_SAMPLED = 8


# Made by PolicyRank, read by actors.group and raytune.launch.
@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What the driver says of the model and plans by.

    joined, fixed_tokens, max_tokens: sizes of micro-batches, as in Cut. seed: of the order of answers. stop_ids: tokens
    that end an answer, by the template.

    Example: PolicyFacts(2442240, 136957248, "single", "cpu", False, True, 50, max_tokens=4096, seed=42, stop_ids=(2,))
    """

    num_trainable: int
    num_parameters: int
    engine: str
    device: str
    checkpointing: bool
    joined: bool
    fixed_tokens: int
    max_tokens: int
    seed: int
    stop_ids: tuple[int, ...]


# Made by PolicyRank, added up over ranks by actors.group.
@dataclass(frozen=True, slots=True)
class UpdateSums:
    """One rank's part of an update.

    Args: loss: of the last optimizer step, already divided by its normaliser: the ranks' add up. sums, maxima: over
    all steps, by metric; count: tokens that `sums` are counted over. num_tokens: tokens of its answers and prompts.

    Example: UpdateSums(0.01, {"ratio": 412.0}, {"ratio_max": 1.2}, 412, 2048, 0.3, 1e-6)
    """

    loss: float
    sums: dict[str, float]
    maxima: dict[str, float]
    count: int
    num_tokens: int
    grad_norm: float
    learning_rate: float


class PolicyRank:
    """One rank. `build` loads the model, `start` wraps it in its engine; then updates may be done.

    Nothing is dropped out: the ratio of a policy to itself has to be 1.

    Args: rank, world_size: this process's place; a process group exists when world_size > 1.
    """

    def __init__(self, cfg: RunConfig, rule: LearnRule, *, rank: int, world_size: int, device: torch.device) -> None:
        self.cfg, self.rule, self.rank, self.world_size, self.device = cfg, rule, rank, world_size, device
        self.engine_name = engine_of(cfg, world_size)
        self.reference: FrozenModel | None = None

    def build(self, checkpoint: Path | None) -> None:
        """Load tokenizer, model and, where one is needed, the reference; weights come from `checkpoint` if given."""
        head = "critic" if self.rule.has_critic else None
        self.built = build_model(self.cfg, checkpoint, value_head=head, dropout=False)
        self.tokenizer, self.model = self.built.tokenizer, self.built.model
        # Whether the policy without its adapter is what the run started from.
        self._began_as_base = isinstance(self.model, PeftModel) and find_adapters(self.cfg.adapter)[1] is None
        if self.rule.role == "critic":
            freeze_output_head(self.model)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    def start(self, *, total_steps: int, longest: int, checkpoint: Path | None) -> PolicyFacts:
        """Wrap the model in its engine and load optimizer state from `checkpoint`.

        Args: total_steps: optimizer steps of the run. longest: tokens of the longest prompt with its answer.
        """
        self.joined = choose_attention(self.cfg, self.model, self.device, longest=longest)
        largest = largest_batch(self.cfg, longest)
        checkpointing = set_checkpointing(self.cfg, self.model, self.device, tokens=largest)
        num_trainable, num_parameters = count_parameters(self.model)
        if self._wants_reference() and not self._began_as_base:
            self._load_reference()
        self.engine: Engine = build_engine(
            self.cfg, self.engine_name, self.built, total_steps=total_steps, device=self.device, ranks=self.world_size
        )
        if checkpoint is not None:
            load_engine_state(self.engine, checkpoint)
        return PolicyFacts(
            num_trainable,
            num_parameters,
            self.engine_name,
            str(self.device),
            checkpointing,
            joined=self.joined,
            fixed_tokens=FIXED_TOKENS[self.device.type],
            max_tokens=largest,
            seed=order_seed(self.cfg),
            stop_ids=tuple(ready_template(DataOptions.of(self.cfg), self.tokenizer).stop_token_ids(self.tokenizer)),
        )

    def values(self, share: Share) -> list[TokenNumbers]:
        """Numbers of every answer of the share, in its order. Collective."""
        micros = [micro for mini in self._micros(share) for micro in mini]
        parts = [part for mini in share.micro for part in mini]
        found: dict[int, TokenNumbers] = {}
        looks = self._look(micros, old=True, reference=self._wants_reference())
        for part, micro, known in zip(parts, micros, looks, strict=True):
            answers = numbers_of([share.samples[number] for number in part], micro, known)
            found |= zip(part, answers, strict=True)
        return [found[number] for number in range(len(share.samples))]

    def update(self, step: int, share: Share) -> UpdateSums:
        """Do this rank's part of all optimizer steps on a rollout batch. All ranks must call it alike.

        Raises: TrainError when the loss or gradient is not finite; nothing of that optimizer step is applied.
        """
        seed_step(self.cfg, step, self.rank)
        micros = self._micros(share)
        counts = self._token_counts(micros)
        known = self._before(share, micros)
        divergence = self._sampled_divergence(share)
        totals: list[MetricSums] = []
        for visit in share.visits:
            divisor = normaliser(
                self.rule.aggregation, num_tokens=counts[visit], num_sequences=share.num_sequences[visit]
            )
            stats, total = self._step(step, micros[visit], known[visit], 1.0 / divisor)
            totals.append(total)
        all_steps = merge(totals)
        strayed = {} if divergence is None else {"kl": divergence * all_steps.count}
        return UpdateSums(
            loss=float(totals[-1].loss) / divisor,
            sums={name: float(value) for name, value in all_steps.sums.items()} | strayed,
            maxima={name: float(value) for name, value in all_steps.maxima.items()},
            count=all_steps.count,
            num_tokens=sum(micro.num_tokens for mini in micros for micro in mini),
            grad_norm=stats.grad_norm,
            learning_rate=stats.learning_rate,
        )

    def save(self, folder: Path, *, with_state: bool) -> None:
        """Write weights (rank 0) and optimizer shards (every rank) into `folder`. Collective."""
        save_rank(self.engine, folder, tokenizer=self.tokenizer if self.rank == 0 else None, with_state=with_state)

    def _step(
        self, step: int, micros: Sequence[Micro], known: Sequence[Known], scale: float
    ) -> tuple[StepStats, MetricSums]:
        parts: list[MetricSums] = []
        for number, (micro, before) in enumerate(zip(micros, known, strict=True)):
            last = number == len(micros) - 1
            loss = build_loss(micro, before, self.rule)
            sums = self.engine.forward_backward(loss, micro.batch, scale=scale, last=last)
            parts.append(merge([sums]))
        total = merge(parts)
        if not math.isfinite(float(total.loss)):
            raise self._non_finite(step, "loss is NaN or infinite")
        try:
            return self.engine.optimizer_step(), total
        except NonFiniteGradient as error:
            raise self._non_finite(step, f"gradient is not finite ({error})") from None

    def _micros(self, share: Share) -> list[list[Micro]]:
        return [
            [
                make_micro(
                    [share.samples[number] for number in part],
                    pad_id=self.tokenizer.pad_token_id,
                    joined=self.joined,
                    device=self.device,
                )
                for part in mini
            ]
            for mini in share.micro
        ]

    def _token_counts(self, micros: Sequence[Sequence[Micro]]) -> list[int]:
        """Tokens that the policy produced, per mini-batch over all ranks; only the ranks have seen the masks."""
        counts = torch.tensor([sum(len(micro.ids) for micro in mini) for mini in micros], device=self.device)
        if self.world_size > 1:
            dist.all_reduce(counts)
        return [int(count) for count in counts]

    def _before(self, share: Share, micros: Sequence[Sequence[Micro]]) -> list[list[Known]]:
        """What has to be known before the first step: with a single one, its own pass tells the old numbers."""
        if share.known:
            return [
                [known_of([share.samples[number] for number in part], self.device) for part in mini]
                for mini in share.micro
            ]
        old = len(share.visits) > 1
        return [self._look(mini, old=old, reference=self.rule.kl_in_loss) for mini in micros]

    def _look(self, micros: Sequence[Micro], *, old: bool, reference: bool) -> list[Known]:
        """Numbers of micro-batches before the policy moves, as far as they are asked for.

        Args: old: of the policy and the critic. reference: of the reference.
        """
        nothing = [None] * len(micros)
        logprobs = self._each(micros) if old and self.rule.role != "critic" else nothing
        known = self._each_of_reference(micros) if reference else nothing
        values = self._each_value(micros) if old and self.rule.has_critic else nothing
        return [Known(*numbers) for numbers in zip(logprobs, known, values, strict=True)]

    def _each(self, micros: Sequence[Micro]) -> list[torch.Tensor]:
        return [self.engine.evaluate(lambda model, _, m=m: logprobs_of(model, m), m.batch) for m in micros]

    def _each_value(self, micros: Sequence[Micro]) -> list[torch.Tensor]:
        return [self.engine.evaluate(lambda model, _, m=m: values_of(model, m), m.batch) for m in micros]

    def _each_of_reference(self, micros: Sequence[Micro]) -> list[torch.Tensor]:
        if self.reference is None:
            with without_adapter(self.model):
                return self._each(micros)
        with self.reference.in_use(), torch.no_grad():
            return [logprobs_of(self.reference, micro) for micro in micros]

    def _sampled_divergence(self, share: Share) -> float | None:
        """How far the policy that drew has strayed from the reference, in nats a token, by some of the answers.

        None where the reference is asked for anyway, or is not at hand: it is the policy without its adapter, unless
        the run went on with one. Collective: every rank does one forward pass.
        """
        if self._wants_reference() or self.rule.role == "critic" or not self._began_as_base:
            return None
        part = next((part for mini in share.micro for part in mini if part), ())[::_SAMPLED]
        micro = make_micro(
            [share.samples[number] for number in part],
            pad_id=self.tokenizer.pad_token_id,
            joined=self.joined,
            device=self.device,
        )
        (reference,) = self._each_of_reference([micro])
        gaps, _ = mismatch_metrics(reference, micro.rollout_logprobs)
        return float(gaps["mismatch_k3"]) / max(len(micro.ids), 1)

    def _wants_reference(self) -> bool:
        return (self.rule.reference or self.rule.kl_in_loss) and self.rule.role != "critic"

    def _load_reference(self) -> None:
        # What loading draws at random (a grown vocabulary), the policy's loading has drawn from this seed.
        seed_all(self.cfg.train.seed)
        model = frozen_copy(
            self.cfg.model,
            self.cfg.adapter,
            dtype=compute_dtype(self.cfg.precision),
            cutoff_len=self.cfg.data.cutoff_len,
            attention=self.model.config._attn_implementation,
        )
        self.reference = FrozenModel(
            model, device=self.device, ranks=self.world_size, sharded=self.engine_name == "fsdp2", offload=True
        )

    def _non_finite(self, step: int, what: str) -> TrainError:
        return TrainError(
            f"update {step}: the {what}; training stopped before the weights changed",
            fix="Lower learning_rate, or look at the rewards and log-probs of this step.",
        )
