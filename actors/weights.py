"""Weight sync on the driver: who has which version, and who must not serve. The tensors pass it by.

ranks gather and write -> replicas verify, load, commit, forget caches -> those that could not are stale until refitted
"""

import asyncio
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.fleet import MemberView, State
from actors.ranks import results_of
from actors.rollout_weights import Parcel
from actors.weights_messages import FLAT, Sent, WeightSettings
from actors.weights_shipment import Shipment, start_receiver
from raytune.errors import PolicyLostError, RolloutError
from raytune.log import get_logger

log = get_logger(__name__)

# For a replica to say where it is; a dead one does not.
_NODE_DEADLINE = 2.0


class WeightPublisher:
    """Implements the WeightSync Protocol.

    Args: ranks: trainer actors with `open_weights(settings) -> WeightSender.opening`, `resend_weights(receivers)`,
    `publish_weights(version, receivers)`, which hand over to a WeightSender. replicas: actors
    with `node()`, `init_transfer(info)`, `receive(update, version)` and `add_adapter(path, version)`, in the router's
    order. router: a RolloutRouter, which knows who serves and refits the others; without one, call `refit`.
    gather_deadline: seconds in which all ranks have to gather and write.
    """

    def __init__(
        self,
        ranks: Sequence[Any],
        replicas: Sequence[Any],
        settings: WeightSettings,
        *,
        router: Any = None,
        gather_deadline: float = 600.0,
    ) -> None:
        self._replicas, self._settings = list(replicas), settings
        self._router, self._gather_deadline = router, gather_deadline
        self._receivers: dict[str, Any] = {}
        self._prepared: set[int] = set()
        self._newest: Sent | None = None
        self._said: dict[int, tuple[bool, int]] = {}
        self.reopen(ranks)

    def reopen(self, ranks: Sequence[Any]) -> None:
        """Take the weights from these ranks from now on. Raises PolicyLostError when one of them is lost."""
        self._ranks = list(ranks)
        opened = self._from_ranks("open weight sync", [rank.open_weights.remote(self._settings) for rank in ranks])
        self._home, self._entries = opened[0]

    def tell_router(self) -> None:
        """Tell a router that was started anew of the newest version; it gives it to every replica."""
        if self._newest is not None:
            self._tell(self._newest, ())

    def publish(self, version: int) -> Mapping[str, float]:
        """As WeightSync.publish. Raises PolicyLostError for a dead rank, RolloutError when no replica can take them."""
        started = time.monotonic()
        nodes = self._nodes()
        receivers = self._receivers_for(nodes.values())
        refs = [rank.publish_weights.remote(version, receivers) for rank in self._ranks]
        sent = self._newest = self._from_ranks(f"publish weights {version}", refs)[0]
        self._drop_receivers(sent.missed)
        ready = time.monotonic()
        serving = self._serving()
        self._prepare([index for index in serving if index not in self._prepared])
        laps, failures = self._deliver(sent, {index: nodes[index] for index in serving if index in nodes})
        received = sorted(laps)
        for index, reason in failures.items():
            log.warning("replica %s missed weights %s and serves nothing until it has them: %s", index, version, reason)
        self._tell(sent, received)
        if serving and not received and self._router is None:
            raise RolloutError(f"no replica took weights {version}: {'; '.join(failures.values())}")
        done = time.monotonic()
        whole = {"publish": ready - started, "load": done - ready, "sync": done - started}
        return {**sent.seconds, **_slowest(laps.values()), **whole}

    @property
    def parcel(self) -> Shipment:
        """The newest version, for a router that is started anew."""
        if self._newest is None:
            raise RolloutError("no weights have been published yet", fix="Publish version 0 before rollouts.")
        return self._shipment(self._newest)

    @property
    def num_bytes(self) -> int:
        """Of the newest version, as it travels."""
        return self._newest.num_bytes if self._newest else 0

    def refit(self, index: int) -> int:
        """Give replica `index` the newest weights; returns their version. Where there is a router, it does this.

        Raises RolloutError when there are none, or the replica cannot take them.
        """
        shipment, actor = self.parcel, self._replicas[index]
        failure: str | None = None
        try:
            return asyncio.run(asyncio.wait_for(shipment.refit(actor), self._settings.deadline))
        except TimeoutError:
            failure = f"not within {self._settings.deadline:g} s"
        except RayError as error:
            failure = _reason(error)
        raise RolloutError(f"replica {index} could not be refitted: {failure}")

    def close(self) -> None:
        """Delete the files on every node. Ranks are not asked: they may be in the middle of an update."""
        for one in self._receivers.values():
            ray.kill(one)
        refs = []
        for node in (node["NodeID"] for node in ray.nodes() if node["Alive"]):
            there = NodeAffinitySchedulingStrategy(node, soft=True)
            task = ray.remote(_remove).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
            refs.append(task.remote(self._settings.on_node(node)))
        ray.wait(refs, num_returns=len(refs), timeout=self._settings.deadline)

    def _serving(self) -> list[int]:
        """Replicas that are to get a version now; dead ones get it from the router when they are back."""
        if self._router is None:
            return list(range(len(self._replicas)))
        members = self._from_router(self._router.members.remote(), "say who serves")
        for one in members:
            self._say(one)
        return [one.index for one in members if one.state in (State.HEALTHY, State.SUSPECT)]

    def _say(self, one: MemberView) -> None:
        """Tell, once, of a replica that is away or was built anew: the router's own log stays in its process."""
        away = one.state in (State.DEAD, State.RESTARTING, State.GONE)
        if not away and one.state is not State.HEALTHY:
            return
        if self._said.get(one.index, (False, 0)) == (away, one.restarts):
            return
        if away:
            log.warning("rollout replica %s is %s: %s", one.index, one.state, one.reason)
        elif one.restarts:
            log.warning("rollout replica %s serves again after restart %s", one.index, one.restarts)
        self._said[one.index] = (away, one.restarts)

    def _nodes(self) -> dict[int, str]:
        """Where each replica is now, as far as they answer; one that was lost may have come back elsewhere."""
        refs = {index: one.node.remote() for index, one in enumerate(self._replicas)}
        ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=_NODE_DEADLINE)
        found: dict[int, str] = {}
        for index, ref in refs.items():
            if ref in ready:
                try:
                    found[index] = ray.get(ref, timeout=_NODE_DEADLINE)
                except RayError as error:
                    log.debug("replica %s does not say where it is: %s", index, error)
        return found

    def _prepare(self, indices: Sequence[int]) -> None:
        """Have replicas check, once, that what will come fits the model that they loaded."""
        info = {"entries": self._entries}
        refs = {i: self._replicas[i].init_transfer.remote(info) for i in indices if self._entries}
        _, failures = self._outcomes(refs, "prepare")
        self._prepared |= set(indices) - failures.keys()
        if failures and not self._prepared:
            raise RolloutError(f"no replica can take the trainer's weights: {next(iter(failures.values()))}")

    def _deliver(self, sent: Sent, nodes: Mapping[int, str]) -> tuple[dict[int, Any], dict[int, str]]:
        """Tell each replica where its node has the version; returns their seconds, and why some do not have it."""
        away = {index: node for index, node in nodes.items() if node not in sent.paths}
        failures = {i: f"its node did not get the weights: {sent.missed.get(n, 'it is new')}" for i, n in away.items()}
        refs = {
            index: self._call(self._replicas[index], sent, sent.paths[node])
            for index, node in nodes.items()
            if index not in failures
        }
        laps, failed = self._outcomes(refs, f"load weights {sent.version}")
        return laps, failures | failed

    def _call(self, actor: Any, sent: Sent, path: str) -> Any:
        if sent.kind == "adapter":
            return actor.add_adapter.remote(path, sent.version)
        return actor.receive.remote({"kind": FLAT, "path": path, "version": sent.version}, sent.version)

    def _tell(self, sent: Sent, received: Sequence[int]) -> None:
        if self._router is not None:
            told = self._router.published.remote(self._shipment(sent), sent.version, list(received))
            self._from_router(told, f"take note of weights {sent.version}")

    def _from_router(self, ref: Any, what: str) -> Any:
        """The router's answer; one that died is started anew by Ray, and asked again."""
        try:
            return ray.get(ref, timeout=self._settings.deadline)
        except GetTimeoutError:
            raise RolloutError(f"the rollout router did not {what} within {self._settings.deadline:g} s") from None
        except RayActorError:
            raise RolloutError(f"the rollout router died for good; it had to {what}") from None

    def _shipment(self, sent: Sent) -> Shipment:
        kind: Literal["flat", "adapter"] = "adapter" if sent.kind == "adapter" else FLAT
        parcel = Parcel(sent.version, kind, dict(sent.paths), {"entries": self._entries})
        return Shipment(parcel, self._ranks[0], self._settings)

    def _outcomes(self, refs: Mapping[int, Any], what: str) -> tuple[dict[int, Any], dict[int, str]]:
        """Wait for all replicas together; returns what they answered, and why others failed or were late."""
        deadline = time.monotonic() + self._settings.deadline
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        for index, ref in refs.items():
            try:
                answers[index] = ray.get(ref, timeout=max(deadline - time.monotonic(), 0.0))
            except GetTimeoutError:
                failures[index] = f"it did not {what} within {self._settings.deadline:g} s"
            except RayError as error:
                failures[index] = _reason(error)
        return answers, failures

    def _receivers_for(self, nodes: Iterable[str]) -> dict[str, Any]:
        """A receiver on each node that has replicas but not the sending rank."""
        away = set(nodes) - {self._home}
        for node in away - self._receivers.keys():
            self._receivers[node] = start_receiver(node, self._settings)
        return {node: self._receivers[node] for node in away}

    def _drop_receivers(self, nodes: Iterable[str]) -> None:
        """Receivers that failed, perhaps dead ones; others are started when they are needed."""
        for node in nodes:
            if (old := self._receivers.pop(node, None)) is not None:
                ray.kill(old)

    def _from_ranks(self, what: str, refs: list[Any]) -> list[Any]:
        return results_of(refs, what, timeout=self._gather_deadline, lost=PolicyLostError)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _slowest(laps: Iterable[Any]) -> dict[str, float]:
    """Seconds of each part in the replica that took longest for it; some engines tell no parts."""
    found: dict[str, float] = {}
    for parts in laps:
        for name, seconds in parts.items() if isinstance(parts, dict) else ():
            found[f"replica_{name}"] = max(seconds, found.get(f"replica_{name}", 0.0))
    return found


def _reason(error: RayError) -> str:
    """The last line of what happened, without Ray's wrapping."""
    return str(error).strip().splitlines()[-1].strip() or type(error).__name__
