"""Trainer ranks that learn from answers; the group implements the Policy Protocol.

driver plans -> one message a rank, with references to its groups -> the rank reads them out of shared memory -> sums
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup

from actors.group import TrainerGroup
from actors.placement import Plan
from actors.trainer import TrainerWorker
from raytune.config.run import RunConfig
from raytune.errors import PolicyLostError, TrainError
from raytune.stages.interfaces import PolicyResult, PolicySample, TokenNumbers

if TYPE_CHECKING:
    from actors.weights_messages import Sent, WeightSettings
    from raytune.stages.policy_loss import LearnRule
    from raytune.stages.policy_plan import Share
    from raytune.stages.policy_rank import PolicyFacts, UpdateSums

_BUILD_DEADLINE = 3600.0
# Groups come out of the shared memory of the node, or over the network from another one.
_FETCH_DEADLINE = 120.0


class PolicyWorker(TrainerWorker):
    """One rank. Its weights leave it by a WeightSender, never by the driver."""

    def build_policy(self, checkpoint: Path | None, rule: "LearnRule") -> None:
        from raytune.stages.policy_rank import PolicyRank

        self._checkpoint = None if checkpoint is None else self._courier.fetch(checkpoint)
        self._policy = PolicyRank(self._cfg, rule, rank=self._rank, world_size=self._world_size, device=self._device)
        self._policy.build(self._checkpoint)

    def start_policy(self, total_steps: int, longest: int) -> "PolicyFacts":
        return self._policy.start(total_steps=total_steps, longest=longest, checkpoint=self._checkpoint)

    def update(self, step: int, share: "Share") -> "UpdateSums":
        return self._policy.update(step, _resolved(share))

    def values(self, share: "Share") -> list[TokenNumbers]:
        return self._policy.values(_resolved(share))

    def save(self, folder: Path, with_state: bool) -> None:
        self._courier.send(folder, lambda local: self._policy.save(local, with_state=with_state))

    def open_weights(self, settings: "WeightSettings") -> tuple[str, list[list[Any]]]:
        """Get ready to send weights; see WeightSender."""
        from actors.weights_sender import WeightSender

        self._sender = WeightSender(self._policy.engine.model, settings, rank=self._rank)
        return self._sender.opening

    def publish_weights(self, version: int, receivers: Mapping[str, Any]) -> "Sent | None":
        return self._sender.publish(version, receivers)

    def resend_weights(self, receivers: Mapping[str, Any]) -> "Sent":
        return self._sender.resend(receivers)

    def offload(self, weights: bool) -> None:
        self._policy.engine.offload(weights=weights)

    def onload(self) -> None:
        self._policy.engine.onload()


def _resolved(share: "Share") -> "Share":
    """The share with its groups in place of the references to them; numpy arrays stay where they lie."""
    from raytune.stages.policy_plan import with_groups

    refs = list(dict.fromkeys(sample.payload for sample in share.samples))
    try:
        groups = ray.get(refs, timeout=_FETCH_DEADLINE)
    except GetTimeoutError:
        raise TrainError(f"{len(refs)} groups of answers did not arrive within {_FETCH_DEADLINE:g} s") from None
    return with_groups(share, dict(zip(refs, groups, strict=True)))


class PolicyGroup(TrainerGroup):
    """All ranks of a policy, or of a critic; implements the Policy Protocol.

    Args: rule: how it learns. epochs, minibatches: optimizer steps on a rollout batch are their product, or fewer for
    a batch of fewer answers. role: whose bundles of the plan these are.
    """

    lost = PolicyLostError

    def __init__(
        self,
        cfg: RunConfig,
        plan: Plan,
        group: PlacementGroup,
        rule: "LearnRule",
        *,
        shared: bool,
        epochs: int = 1,
        minibatches: int = 1,
        role: str = "trainer",
    ) -> None:
        super().__init__(cfg, plan, group, shared=shared, role=role, worker=PolicyWorker)
        self._rule, self._epochs, self._minibatches = rule, epochs, minibatches

    @property
    def workers(self) -> list[Any]:
        """The ranks' actors, for a WeightPublisher."""
        return list(self._workers)

    def build(self, checkpoint: Path | None) -> list[Any]:
        """Begin loading the model on every rank; hand the result to `start_policy`."""
        return [worker.build_policy.remote(checkpoint, self._rule) for worker in self._workers]

    def start_policy(self, building: list[Any], *, total_steps: int, longest: int) -> "PolicyFacts":
        """Wait for the model, attach optimizer and state.

        Args: total_steps: optimizer steps of the run. longest: tokens of the longest prompt with its answer.
        """
        from raytune.stages.policy_plan import Cut

        self._sizes = (total_steps, longest)
        self._wait("load the model", building, timeout=_BUILD_DEADLINE)
        self._facts: PolicyFacts = self._all(
            "prepare training", lambda w: w.start_policy.remote(total_steps, longest), timeout=_BUILD_DEADLINE
        )[0]
        self._cut = Cut(
            num_ranks=len(self._workers),
            minibatches=self._minibatches,
            epochs=self._epochs,
            max_tokens=self._facts.max_tokens,
            joined=self._facts.joined,
            fixed_tokens=self._facts.fixed_tokens,
        )
        return self._facts

    def rebuild(self, checkpoint: Path | None) -> None:
        """New ranks in the bundles of these, dead or alive, with the weights and state of a checkpoint.

        Args: checkpoint: None for the weights that a run begins with. Raises PolicyLostError when they are lost too.
        """
        self.kill()
        self._begin()
        total_steps, longest = self._sizes
        self.start_policy(self.build(checkpoint), total_steps=total_steps, longest=longest)

    def kill(self) -> None:
        """Have the ranks end, dead or alive: what they hold of their devices goes with their processes."""
        for worker in self._workers:
            ray.kill(worker)

    def update(self, step: int, samples: Sequence[PolicySample]) -> PolicyResult:
        from raytune.stages.policy_loss import explained

        shares = self._shares(samples, step)
        refs = [worker.update.remote(step, share) for worker, share in zip(self._workers, shares, strict=True)]
        sums: list[UpdateSums] = self._wait(f"update {step}", refs)
        metrics = _means(sums)
        return PolicyResult(
            loss=sum(part.loss for part in sums),
            num_tokens=sum(part.num_tokens for part in sums),
            grad_norm=sums[0].grad_norm,
            learning_rate=sums[0].learning_rate,
            metrics={**metrics, **explained(metrics)},
        )

    def values(self, samples: Sequence[PolicySample]) -> list[TokenNumbers]:
        if not samples:
            return []
        shares = self._shares(samples, 0)
        refs = [worker.values.remote(share) for worker, share in zip(self._workers, shares, strict=True)]
        told = self._wait(f"numbers of {len(samples)} answers", refs)
        found = {
            number: numbers
            for share, part in zip(shares, told, strict=True)
            for number, numbers in zip(share.numbers, part, strict=True)
        }
        return [found[number] for number in range(len(samples))]

    def offload(self, *, weights: bool) -> None:
        """As stages.turns.Offloads."""
        self._all("offload", lambda w: w.offload.remote(weights))

    def onload(self) -> None:
        self._all("onload", lambda w: w.onload.remote())

    def _shares(self, samples: Sequence[PolicySample], step: int) -> "list[Share]":
        from raytune.stages.policy_plan import plan_update

        return plan_update(samples, self._cut, seed=(self._facts.seed, step))


def _means(sums: "Sequence[UpdateSums]") -> dict[str, float]:
    """Metrics over all ranks: sums over their count, maxima as they are."""
    count = max(sum(part.count for part in sums), 1)
    names = dict.fromkeys(name for part in sums for name in part.sums)
    means = {name: sum(part.sums.get(name, 0.0) for part in sums) / count for name in names}
    tops = dict.fromkeys(name for part in sums for name in part.maxima)
    return means | {name: max(part.maxima.get(name, 0.0) for part in sums) for name in tops}
