"""Weight sync on the driver: who has which version, and who must not serve. The tensors pass it by.

ranks gather and write -> replicas verify, load, commit, forget caches -> those that could not are stale until refitted
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.weights_messages import Sent, WeightSettings
from actors.weights_receiver import WeightReceiver
from raytune.errors import RaytuneError, RolloutError, TrainError
from raytune.log import get_logger

log = get_logger(__name__)

Published = Callable[[int, frozenset[int]], None]
"""Called with a version and the replicas that have it; all others are stale."""


@dataclass(slots=True)
class _Replica:
    actor: Any
    node: str


class WeightPublisher:
    """Implements the WeightSync Protocol.

    Args: ranks: trainer actors with `open_weights(settings) -> WeightSender.opening`, `resend_weights(receivers)`,
    `publish_weights(version, receivers)` and `close_weights()`, which hand over to a WeightSender. gather_deadline:
    seconds in which all ranks have to gather and write. published: told of each version that was published.

    Replicas are actors with `init_transfer(info)`, `receive(update, version)` and `add_adapter(path, version)`.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        settings: WeightSettings,
        *,
        gather_deadline: float = 600.0,
        published: Published | None = None,
    ) -> None:
        self._ranks, self._settings, self._gather_deadline = list(ranks), settings, gather_deadline
        self._told = published or (lambda version, received: None)
        self._replicas: dict[int, _Replica] = {}
        self._receivers: dict[str, Any] = {}
        # Refits come from the router's thread while the driver publishes.
        self._lock = threading.RLock()
        self._newest: Sent | None = None
        opened = self._from_ranks("open weight sync", [rank.open_weights.remote(settings) for rank in self._ranks])
        self._home, self._entries = opened[0]

    def attach(self, index: int, actor: Any, *, node: str | None = None) -> None:
        """Let replica `index` take part from the next version on; `refit` gives it the newest one.

        Args: node: id of its node; asked from the actor when not given.
        """
        where = node or ray.get(actor.__ray_call__.remote(_node_of), timeout=self._settings.deadline)
        with self._lock:
            self._replicas[index] = _Replica(actor, where)

    def detach(self, index: int) -> None:
        """Replica `index` is gone."""
        with self._lock:
            self._replicas.pop(index, None)

    def publish(self, version: int) -> Mapping[str, float]:
        """As WeightSync.publish. Raises TrainError when a rank fails, RolloutError when no replica at all took it."""
        started = time.monotonic()
        with self._lock:
            replicas = dict(self._replicas)
            receivers = self._receivers_for(replicas)
            refs = [rank.publish_weights.remote(version, receivers) for rank in self._ranks]
            sent = self._newest = self._from_ranks(f"publish weights {version}", refs)[0]
            self._drop_receivers(sent.missed)
        ready = time.monotonic()
        failures = self._deliver(sent, replicas)
        received = frozenset(replicas.keys() - failures.keys())
        self._told(version, received)
        for index, reason in failures.items():
            log.warning("replica %s missed weights %s and serves nothing until it has them: %s", index, version, reason)
        if replicas and not received:
            raise RolloutError(f"no replica took weights {version}: {'; '.join(failures.values())}")
        done = time.monotonic()
        return {**sent.seconds, "publish": ready - started, "load": done - ready, "sync": done - started}

    def refit(self, index: int) -> int:
        """Give replica `index` the newest published weights; returns their version. For the router.

        Raises RolloutError when there are none, or the replica cannot take them.
        """
        with self._lock:
            replica = self._replicas[index]
            sent = self._newest
            if sent is None:
                raise RolloutError("no weights have been published yet", fix="Publish version 0 before rollouts.")
            if replica.node not in sent.paths:
                sent = self._newest = self._resend(sent, replica)
        self._prepare(replica)
        failures = self._deliver(sent, {index: replica})
        if failures:
            raise RolloutError(f"replica {index} could not be refitted: {failures[index]}")
        return sent.version

    def close(self) -> None:
        """Delete the files on the other nodes; rank 0 deletes its own."""
        refs = [one.close.remote() for one in self._receivers.values()]
        refs += [rank.close_weights.remote() for rank in self._ranks]
        ray.wait(refs, num_returns=len(refs), timeout=self._settings.deadline)
        for one in self._receivers.values():
            ray.kill(one)

    def prepare(self, index: int) -> None:
        """Have replica `index` check, once, that what will come fits the model that it loaded."""
        self._prepare(self._replicas[index])

    def _prepare(self, replica: _Replica) -> None:
        if self._entries:
            ref = replica.actor.init_transfer.remote({"entries": self._entries})
            reason = self._failures({0: ref}, "prepare").get(0)
            if reason is not None:
                raise RolloutError(f"a replica cannot take the trainer's weights: {reason}")

    def _deliver(self, sent: Sent, replicas: Mapping[int, _Replica]) -> dict[int, str]:
        """Tell each replica where its node has the version; returns why some do not have it."""
        failures = {
            index: f"its node did not get the weights: {sent.missed.get(one.node, 'it joined later')}"
            for index, one in replicas.items()
            if one.node not in sent.paths
        }
        refs = {
            index: self._call(one.actor, sent, sent.paths[one.node])
            for index, one in replicas.items()
            if index not in failures
        }
        return failures | self._failures(refs, f"load weights {sent.version}")

    def _call(self, actor: Any, sent: Sent, path: str) -> Any:
        if sent.kind == "adapter":
            return actor.add_adapter.remote(path, sent.version)
        update = {"kind": "flat", "path": path, "version": sent.version}
        return actor.receive.remote(update, sent.version)

    def _failures(self, refs: Mapping[int, Any], what: str) -> dict[int, str]:
        """Wait for all replicas together; returns the reason of each that failed or was late."""
        deadline = time.monotonic() + self._settings.deadline
        failures: dict[int, str] = {}
        for index, ref in refs.items():
            try:
                ray.get(ref, timeout=max(deadline - time.monotonic(), 0.0))
            except GetTimeoutError:
                failures[index] = f"it did not {what} within {self._settings.deadline:g} s"
            except RayError as error:
                failures[index] = _reason(error)
        return failures

    def _receivers_for(self, replicas: Mapping[int, _Replica]) -> dict[str, Any]:
        """A receiver on each node that has replicas but not the sending rank."""
        for node in {one.node for one in replicas.values()} - {self._home}:
            if node not in self._receivers:
                self._receivers[node] = self._start_receiver(node)
        return {node: one for node, one in self._receivers.items() if any(r.node == node for r in replicas.values())}

    def _start_receiver(self, node: str) -> Any:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = ray.remote(WeightReceiver).options(num_cpus=0, scheduling_strategy=there)
        return actor.remote(self._settings)

    def _drop_receivers(self, nodes: Iterable[str]) -> None:
        """Receivers that failed, perhaps dead ones; others are started when they are needed."""
        for node in nodes:
            if (old := self._receivers.pop(node, None)) is not None:
                ray.kill(old)

    def _resend(self, sent: Sent, replica: _Replica) -> Sent:
        """The newest version for a node that came later, or whose receiver died."""
        self._drop_receivers([replica.node])
        receiver = self._receivers_for({0: replica})
        one = {node: actor for node, actor in receiver.items() if node == replica.node}
        what = f"send weights {sent.version} to one more node"
        more = self._from_ranks(what, [self._ranks[0].resend_weights.remote(one)])[0]
        if replica.node not in more.paths:
            raise RolloutError(f"the node of a replica did not get the weights: {more.missed.get(replica.node)}")
        missed = {node: reason for node, reason in sent.missed.items() if node != replica.node}
        return Sent(sent.version, sent.kind, {**sent.paths, **more.paths}, sent.num_bytes, sent.seconds, missed)

    def _from_ranks(self, what: str, refs: list[Any]) -> list[Any]:
        """Results of all ranks, or the error of the one that failed first: its peers may wait for it in vain."""
        deadline = time.monotonic() + self._gather_deadline
        pending = list(refs)
        while pending:
            done, pending = ray.wait(pending, timeout=max(deadline - time.monotonic(), 0.0))
            if not done:
                raise TrainError(
                    f"rank {refs.index(pending[0])} did not {what} within {self._gather_deadline:g} s",
                    fix="Look at the ranks' load; every rank takes part in gathering sharded weights.",
                )
            try:
                ray.get(done, timeout=self._gather_deadline)
            except RayError as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, RaytuneError):
                    raise error.cause from error
                raise TrainError(f"rank {refs.index(done[0])} could not {what}: {_reason(error)}") from error
        return ray.get(refs, timeout=self._gather_deadline)


def _node_of(_: Any) -> str:
    return ray.get_runtime_context().get_node_id()


def _reason(error: RayError) -> str:
    """The last line of what happened, without Ray's wrapping."""
    return str(error).strip().splitlines()[-1].strip() or type(error).__name__
