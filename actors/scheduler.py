"""The one scheduler of a cluster: a named actor that lets runs reserve their placement groups one at a time.

ask (repeatedly) -> "go" for the first in the queue -> the run creates its placement group -> settled -> next

The queue is ordered by priority, then by arrival. The run itself owns its placement group, so that Ray frees it when
the driver dies; what is held, and by whom, is read from Ray and not remembered here.
"""

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from actors.autoscaling import adds_nodes
from actors.placement import NodeShape, Plan, homes, place
from raytune.errors import PlacementError
from raytune.log import get_logger

log = get_logger(__name__)

NAME = "raytune-scheduler"
NAMESPACE = "raytune"
PREFIX = "raytune/"
_POLL = 0.5
_CALL_DEADLINE = 60.0
# A run that has not asked for this long is gone; its place in the queue is given away.
_FORGET_AFTER = 30.0


@dataclass
class _Ticket:
    run: str
    priority: int
    arrived: float
    asked: float


@dataclass
class Queue:
    """Who may reserve next. Time is passed in, so that tests need not wait.

    Runs are known by their tickets, for two of them may have one name.
    """

    tickets: dict[str, _Ticket] = field(default_factory=dict)

    def ask(self, ticket: str, run: str, priority: int, now: float) -> str | None:
        """Return None when it is the ticket's turn, else the name of the run before it."""
        self.tickets = {key: t for key, t in self.tickets.items() if now - t.asked < _FORGET_AFTER or key == ticket}
        mine = self.tickets.setdefault(ticket, _Ticket(run, priority, now, now))
        mine.asked = now
        first = min(self.tickets.values(), key=lambda t: (-t.priority, t.arrived))
        return None if first is mine else first.run

    def settle(self, ticket: str) -> None:
        """The run has its placement group, or has given up."""
        self.tickets.pop(ticket, None)


class Scheduler:
    """The actor around the queue."""

    def __init__(self) -> None:
        self._queue = Queue()

    def ask(self, ticket: str, run: str, priority: int) -> str | None:
        return self._queue.ask(ticket, run, priority, time.monotonic())

    def settle(self, ticket: str) -> None:
        self._queue.settle(ticket)


def nodes() -> list[NodeShape]:
    """Shapes of the living nodes of the connected cluster."""
    return node_shapes([node for node in ray.nodes() if node["Alive"]])


def node_shapes(alive: list[dict[str, Any]]) -> list[NodeShape]:
    """Shapes under the nodes' addresses; where two nodes share a host, a piece of the node's id tells them apart."""
    times = Counter(node["NodeManagerAddress"] for node in alive)
    shapes = []
    for node in alive:
        address, resources = node["NodeManagerAddress"], node["Resources"]
        name = address if times[address] == 1 else f"{address}#{node['NodeID'][:6]}"
        shapes.append(NodeShape(name, resources.get("CPU", 0), resources.get("GPU", 0), resources.get("memory", 0)))
    return shapes


def reserve(plan: Plan, *, timeout: float) -> PlacementGroup:
    """Reserve all bundles of `plan` as one placement group owned by this process.

    Raises PlacementError at once when the nodes could never hold it and no autoscaler adds others, and after `timeout`
    seconds, naming what was waited for: nodes to come, or who holds the ones that are there.
    """
    homes(plan, nodes(), adds_nodes=adds_nodes())
    actor = ray.remote(Scheduler).options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0
    )
    scheduler: Any = actor.remote()
    ticket = uuid4().hex
    deadline = time.monotonic() + timeout
    try:
        _wait_for_turn(scheduler, ticket, plan, deadline, timeout)
        return _create(plan, deadline, timeout)
    finally:
        ray.get(scheduler.settle.remote(ticket), timeout=_CALL_DEADLINE)


def release(group: PlacementGroup) -> None:
    """Give the resources back; actors inside end with it."""
    remove_placement_group(group)


def _wait_for_turn(scheduler: Any, ticket: str, plan: Plan, deadline: float, timeout: float) -> None:
    said = None
    ask = scheduler.ask.remote
    while (before := ray.get(ask(ticket, plan.run, plan.priority), timeout=_CALL_DEADLINE)) is not None:
        if before != said:
            log.info("waiting: run %s is before this one in the queue", before)
            said = before
        if time.monotonic() > deadline:
            raise PlacementError(
                f"run {plan.run} waited {timeout:g} s in the queue behind {before}",
                fix="Raise placement_timeout or priority.",
            )
        time.sleep(_POLL)


def _create(plan: Plan, deadline: float, timeout: float) -> PlacementGroup:
    # Waiting for it is also what makes an autoscaler start nodes.
    group = placement_group([b.resources() for b in plan.bundles], strategy="PACK", name=PREFIX + plan.run)
    with ExitStack() as failed:
        # By Ctrl-C, too: the driver may live on, and the reservation with it.
        failed.callback(remove_placement_group, group)
        _wait_for_group(group, plan, deadline, timeout)
        failed.pop_all()
    return group


def _wait_for_group(group: PlacementGroup, plan: Plan, deadline: float, timeout: float) -> None:
    said: str | None = None
    while not group.wait(timeout_seconds=_POLL if said else 2.0):
        lacking = _lacking(plan)
        reason = holders(plan) if lacking is None else lacking.what
        if said is None:
            what = "resources" if lacking is None else "the autoscaler to add nodes"
            # What GPUs it could bring is not known before it has brought one.
            without = "" if lacking is None or plan.gpus else "; no GPUs are asked for (gpus_per_worker asks for them)"
            log.info("waiting for %s: %s%s", what, reason, without)
            said = reason
        if time.monotonic() > deadline:
            raise _too_late(reason, timeout, lacking)


def _lacking(plan: Plan) -> PlacementError | None:
    """What the living nodes lack for `plan`; None when they only have to become free."""
    try:
        place(plan, nodes())
    except PlacementError as error:
        return error
    return None


def _too_late(reason: str, timeout: float, lacking: PlacementError | None) -> PlacementError:
    if lacking is None:
        fix = "Wait for the holder, stop it, lower cpus_per_worker, or raise placement_timeout."
        return PlacementError(f"the cluster stayed busy for {timeout:g} s: {reason}", fix=fix)
    fix = "Look with `ray status` whether the autoscaler may and can add such nodes, or raise placement_timeout."
    return PlacementError(f"the autoscaler added too few nodes within {timeout:g} s: {reason}", fix=fix)


def holders(plan: Plan) -> str:
    """One line: what the plan needs, what is free, and which placement groups hold the rest."""
    free = ray.available_resources()
    need = f"need {plan.cpus:g} CPUs and {plan.gpus:g} GPUs"
    have = f"free {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
    held = []
    for entry in placement_group_table().values():
        if entry["state"] != "CREATED":
            continue
        bundles = entry["bundles"].values()
        cpus, gpus = (sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU"))
        held.append(f"{(entry['name'] or 'an unnamed group').removeprefix(PREFIX)} holds {cpus:g} CPUs, {gpus:g} GPUs")
    return f"{need}; {have}; {'; '.join(held) if held else 'the rest is held by actors outside placement groups'}"
