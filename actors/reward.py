"""Reward actors: a pool of processes that score groups, and survive what people's reward functions do.

driver -> desk (hands out groups, keeps time) -> worker (decodes, calls the functions) -> desk -> driver
                                                 worker -> reward model (batches over groups)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from actors import stacks
from actors.reward_desk import RewardLimits, start_desk
from actors.reward_model import ModelReward
from actors.reward_seats import START_DEADLINE
from raytune.config.model import ModelConfig
from raytune.config.reward import RewardConfig
from raytune.config.template import TemplateConfig
from raytune.data.decoder import Decodes
from raytune.errors import RaytuneError, RewardError
from raytune.rewards.base import RewardFunction, RewardUnavailable
from raytune.rewards.builtin import listed
from raytune.stages.samples import Group, ScoredGroup

_ANSWER_DEADLINE = 30.0
MODEL = "reward_model"
"""What a trained reward model is called in logs."""


# Made on the driver, read by every reward worker.
@dataclass(frozen=True, slots=True)
class RewardJob:
    """How answers are scored.

    Args: model, template: the policy's, for its tokenizer. columns: those of the prompts' rows; None if not known.
    max_length: most tokens in an answer. reward_model: name of the RewardModelWorker, if there is one.

    Example: RewardJob(cfg.reward, cfg.model, cfg.template, columns=("prompt", "solution"), max_length=64)
    """

    reward: RewardConfig
    model: ModelConfig
    template: TemplateConfig
    columns: tuple[str, ...] | None
    max_length: int
    reward_model: str | None = None


class RewardWorker:
    """One process that scores a group at a time. It keeps nothing between groups: any other can do its work again."""

    def __init__(self, job: RewardJob, decoder: Decodes) -> None:
        stacks.register("reward worker")
        self._job, self._decoder = job, decoder
        self._model = None
        if job.reward_model is not None:
            self._model = ModelReward(job.reward_model, seconds=job.reward.reward_time_limit)

    def load(self) -> dict[str, float]:
        """Load the functions. Returns their weights, by name. Errors: as load_rewards."""
        self._rewards = load_functions(self._job, self._model)
        return {reward.name: reward.weight for reward in self._rewards}

    def score(self, group: Group) -> ScoredGroup:
        """Score a group. Errors: RewardUnavailable if the reward model cannot be reached: another attempt may help."""
        from raytune.stages.scoring import score_group

        scored = score_group(self._rewards, group, self._decoder, time_limit=self._job.reward.reward_time_limit)
        if self._model is not None and self._model.trouble is not None:
            raise RewardUnavailable(self._model.trouble)
        return scored


def make_decoder(job: RewardJob) -> Decodes:
    """What turns the policy's tokens into text. Runs in a task, for workers should not wait for transformers."""
    from raytune.data.decoder import decoder_of
    from raytune.data.template import load_template
    from raytune.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(job.model)
    load_template(job.template.template, tokenizer, job.template).fix_tokenizer(tokenizer)
    return decoder_of(tokenizer)


def load_functions(job: RewardJob, model: ModelReward | None) -> list[RewardFunction]:
    """The functions of a job, its reward model last."""
    from raytune.rewards.load import load_rewards, weights_of
    from raytune.stages.scoring import GIVEN

    columns = None if job.columns is None else {*GIVEN, *job.columns}
    if model is None:
        return load_rewards(job.reward, columns=columns, max_length=job.max_length)
    *weights, of_model = weights_of(job.reward, [*listed(job.reward), MODEL])
    # The functions may all be there to be watched only.
    own = job.reward.model_copy(update={"reward_weights": ()})
    rewards = load_rewards(own, columns=columns, max_length=job.max_length)
    weighted = [replace(reward, weight=weight) for reward, weight in zip(rewards, weights, strict=True)]
    return [*weighted, model_function(model, of_model)]


def model_function(model: ModelReward, weight: float) -> RewardFunction:
    """The reward model as a function among others."""
    accepts = frozenset({"completions", "token_rows"})
    return RewardFunction(MODEL, model, weight, accepts=accepts, awaits=True)


class RewardPool:
    """The driver's end: groups in, scored groups out, whatever happens to the workers.

    A group whose worker dies or takes too long is tried elsewhere; after `limits.attempts` its samples count as
    unscorable. Scoring a group twice gives the same, so callers may submit it again.

    `decoder` refers to what decodes the policy's tokens, for transcripts.

    Args: places: Ray's options of each worker (num_cpus, scheduling_strategy, ...), one a worker.
    Errors: what load_rewards raises; RewardError if workers do not start.
    """

    def __init__(self, job: RewardJob, places: Sequence[Mapping[str, Any]], limits: RewardLimits | None = None) -> None:
        if not places:
            raise RewardError("a reward pool needs a worker", fix="Set the number of reward workers to 1 or more.")
        limits = limits or RewardLimits.of(job.reward)
        self._desk = start_desk(
            RewardWorker, job, make_decoder, [dict(place) for place in places], limits, job.reward_model
        )
        self.decoder = self._desk.shared.remote()
        try:
            ray.get(self._desk.start.remote(), timeout=START_DEADLINE + _ANSWER_DEADLINE)
        except GetTimeoutError:
            self.close()
            raise RewardError(f"the reward workers did not start within {START_DEADLINE:g} s") from None
        except RayTaskError as error:
            self.close()
            raise _cause(error) from None

    def submit(self, group: Any) -> Any:
        """Begin to score the group behind an object reference; returns a reference to its ScoredGroup.

        The ScoredGroup has no payload. The reference fails with RewardError if no worker can be started any more, and
        with Ray's error if the group itself is lost.
        """
        # In a list it travels as a reference, that of a group still being drawn too.
        return self._desk.score.remote([group])

    def close(self) -> None:
        """End the desk, and with it its workers."""
        ray.kill(self._desk)


def _cause(error: RayTaskError) -> RaytuneError:
    if isinstance(error.cause, RaytuneError):
        return error.cause
    return RewardError(f"the reward workers do not start: {str(error).strip().splitlines()[-1]}")
