"""Plans: which bundles of resources a run needs, and where they would go. Pure values; no Ray, no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raytune.errors import PlacementError

# Three times a third of a GPU is one.
_ROUNDING = 1e-6
NODE_TO_COME = "a node that the autoscaler would add"


# Made by plan builders, read by actors.scheduler and `raytune plan`.
@dataclass(frozen=True, slots=True)
class Bundle:
    """Resources of one actor. Example: Bundle("trainer", 0, cpus=1, gpus=0)"""

    role: str
    rank: int
    cpus: float
    gpus: float

    def resources(self) -> dict[str, float]:
        """As Ray's placement groups want them."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One node's resources. Example: NodeShape("10.0.0.4", cpus=16, gpus=8)"""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All bundles of one run; they are reserved together or not at all.

    Example: Plan("sft-smollm2", (Bundle("trainer", 0, 1, 0), Bundle("trainer", 1, 1, 0)))
    """

    run: str
    bundles: tuple[Bundle, ...]
    priority: int = 0

    @property
    def cpus(self) -> float:
        return sum(bundle.cpus for bundle in self.bundles)

    @property
    def gpus(self) -> float:
        return sum(bundle.gpus for bundle in self.bundles)

    def of_role(self, role: str) -> list[int]:
        """Indices of the bundles of one role, by rank."""
        return [index for index, bundle in enumerate(self.bundles) if bundle.role == role]


def make_plan(
    run: str,
    *,
    num_ranks: int,
    cpus_per_rank: float,
    gpus_per_rank: float,
    priority: int = 0,
    others: Sequence[Bundle] = (),
) -> Plan:
    """Bundles of a run: its trainer ranks, and those of the roles beside them (`others`).

    Data workers hold none: they run beside the ranks, which wait for them, and are gone before the first step.
    """
    trainers = [Bundle("trainer", rank, cpus_per_rank, gpus_per_rank) for rank in range(num_ranks)]
    return Plan(run, (*trainers, *others), priority)


def room_beside(nodes: Sequence[NodeShape], others: Sequence[Bundle]) -> list[NodeShape]:
    """What `others` leave of the nodes; the nodes as they are where others do not fit, which `place` will say."""
    if not others:
        return list(nodes)
    try:
        homes = place(Plan("others", tuple(others)), nodes)
    except PlacementError:
        return list(nodes)
    taken: dict[str, list[float]] = {node.name: [0.0, 0.0] for node in nodes}
    for bundle, home in zip(others, homes, strict=True):
        taken[home][0] += bundle.cpus
        taken[home][1] += bundle.gpus
    return [NodeShape(node.name, node.cpus - taken[node.name][0], node.gpus - taken[node.name][1]) for node in nodes]


def share_of_cpus(nodes: Sequence[NodeShape], *, num_ranks: int, gpus_per_rank: float) -> int:
    """The most CPUs that each of `num_ranks` can have with all of them placed; 1 when the nodes cannot hold them.

    A node with GPUs is cut into as many parts as ranks fit on all of its GPUs: a run on some leaves the others theirs.
    """

    def num_places(cpus: int) -> int:
        if gpus_per_rank == 0:
            return sum(math.floor(node.cpus / cpus) for node in nodes)
        parts = [(math.floor(node.gpus / gpus_per_rank + _ROUNDING), node.cpus) for node in nodes]
        return sum(count for count, of_node in parts if count and of_node / count >= cpus)

    largest = math.floor(max((node.cpus for node in nodes), default=1))
    return next((cpus for cpus in range(largest, 1, -1) if num_places(cpus) >= num_ranks), 1)


def num_threads(reserved: float, *, of_node: float, cores: int) -> int:
    """Threads of a rank that reserved some of the CPUs which Ray counts on its node.

    Args: reserved: CPUs of the rank. of_node: CPUs of its node, a count that nobody measures. cores: of the host.
    """
    return max(math.floor(reserved * min(cores / of_node, 1.0) + _ROUNDING), 1) if of_node else 1


def place(plan: Plan, nodes: Sequence[NodeShape]) -> list[str]:
    """Name the node of each bundle, packing as tightly as Ray's PACK strategy would.

    Raises PlacementError, in one line with the arithmetic, when the nodes could never hold the plan.
    """
    free = {node.name: [node.cpus, node.gpus] for node in nodes}
    homes: dict[int, str] = {}
    # The largest bundles first: a small one fits into what they leave, not the other way round.
    by_size = sorted(range(len(plan.bundles)), key=lambda i: (-plan.bundles[i].gpus, -plan.bundles[i].cpus))
    for index in by_size:
        bundle = plan.bundles[index]
        home = next((n for n, (cpus, gpus) in free.items() if cpus >= bundle.cpus and gpus >= bundle.gpus), None)
        if home is None:
            raise _does_not_fit(plan, bundle, nodes)
        free[home][0] -= bundle.cpus
        free[home][1] -= bundle.gpus
        homes[index] = home
    return [homes[index] for index in range(len(plan.bundles))]


def homes(plan: Plan, nodes: Sequence[NodeShape], *, adds_nodes: bool) -> list[str]:
    """As `place`; a plan too large for the living nodes of a cluster that adds nodes goes to nodes still to come."""
    try:
        return place(plan, nodes)
    except PlacementError:
        if not adds_nodes:
            raise
    return [NODE_TO_COME] * len(plan.bundles)


def _does_not_fit(plan: Plan, bundle: Bundle, nodes: Sequence[NodeShape]) -> PlacementError:
    kind = "GPU" if plan.gpus > sum(node.gpus for node in nodes) or bundle.gpus > 0 else "CPU"
    need = plan.gpus if kind == "GPU" else plan.cpus
    parts = ", ".join(f"{node.name} {_show(node.gpus if kind == 'GPU' else node.cpus)}" for node in nodes)
    have = sum(node.gpus if kind == "GPU" else node.cpus for node in nodes)
    ranks = sum(1 for other in plan.bundles if other.role == "trainer")
    fits = math.floor(ranks * have / need) if need else ranks
    advice = f"Set num_workers: {fits} or add a node." if 0 < fits < ranks else "Add a node or lower cpus_per_worker."
    return PlacementError(f"the run needs {_show(need)} {kind}s, the cluster has {_show(have)} ({parts})", fix=advice)


def _show(amount: float) -> str:
    return f"{amount:g}"
