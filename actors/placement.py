"""Plans: which bundles of resources a run needs, and where they would go. Pure values; no Ray, no torch."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raytune.errors import PlacementError

# Three times a third of a GPU is one.
_ROUNDING = 1e-6
# Ray counts in ten-thousandths.
_GRAIN = 10_000
_GIB = 2**30
REWARD = "reward"
NODE_TO_COME = "a node that the autoscaler would add"


# Made by plan builders, read by actors.scheduler and `raytune plan`.
@dataclass(frozen=True, slots=True)
class Bundle:
    """Resources of one actor, or of several that take turns with them.

    Args: guests: roles of the others, once for each actor; rewards are given by CPUs alone.

    Example: Bundle("trainer", 0, cpus=4, gpus=1, guests=("rollout", "reward"))
    """

    role: str
    rank: int
    cpus: float
    gpus: float
    guests: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Of all actors in it."""
        return (self.role, *self.guests)

    def seat(self, role: str) -> tuple[float, float]:
        """CPUs and GPUs that Ray counts for one of the actors: equal parts, though in its turn it uses all of them."""
        computing = [one for one in self.roles if one != REWARD]
        gpus = self.gpus / max(len(computing), 1) if role != REWARD else 0.0
        return _grained(self.cpus / len(self.roles)), _grained(gpus)

    def resources(self) -> dict[str, float]:
        """As Ray's placement groups want them."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One node's resources; memory that was free when it was looked at, in bytes, 0 where it is not known.

    Example: NodeShape("10.0.0.4", cpus=16, gpus=8)
    """

    name: str
    cpus: float
    gpus: float
    memory: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """All bundles of one run; they are reserved together or not at all.

    Example: Plan("sft-smollm2", (Bundle("trainer", 0, 1, 0), Bundle("trainer", 1, 1, 0)))
    """

    run: str
    bundles: tuple[Bundle, ...]
    priority: int = 0
    note: str | None = None
    """Why roles share bundles, where nobody asked for it."""

    @property
    def cpus(self) -> float:
        return sum(bundle.cpus for bundle in self.bundles)

    @property
    def gpus(self) -> float:
        return sum(bundle.gpus for bundle in self.bundles)

    @property
    def colocated(self) -> bool:
        """Whether ranks and rollout replicas take turns."""
        return any("rollout" in bundle.guests for bundle in self.bundles)

    def of_role(self, role: str) -> list[int]:
        """Indices of the bundles of one role, one for each of its actors, by rank."""
        return [index for index, bundle in enumerate(self.bundles) for one in bundle.roles if one == role]


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
    return [replace(node, cpus=node.cpus - taken[node.name][0], gpus=node.gpus - taken[node.name][1]) for node in nodes]


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
    homes = _assign(plan, nodes)
    if isinstance(homes, Bundle):
        raise _does_not_fit(plan, homes, nodes)
    return homes


def _assign(plan: Plan, nodes: Sequence[NodeShape]) -> list[str] | Bundle:
    """The node of each bundle, or the first bundle that has none."""
    free = {node.name: [node.cpus, node.gpus] for node in nodes}
    homes: dict[int, str] = {}
    # The largest bundles first: a small one fits into what they leave, not the other way round.
    by_size = sorted(range(len(plan.bundles)), key=lambda i: (-plan.bundles[i].gpus, -plan.bundles[i].cpus))
    for index in by_size:
        bundle = plan.bundles[index]
        home = next((n for n, (cpus, gpus) in free.items() if cpus >= bundle.cpus and gpus >= bundle.gpus), None)
        if home is None:
            return bundle
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


def check_memory(plan: Plan, needs: Mapping[str, float], nodes: Sequence[NodeShape]) -> None:
    """Refuse a plan whose models cannot be in the nodes' memory, wherever they are put.

    Args: needs: bytes of one actor, by role. Nodes whose memory is not known hold anything.
    Raises: PlacementError with the arithmetic.
    """
    if not nodes or not all(node.memory for node in nodes):
        return
    sizes = [sum(needs.get(role, 0.0) for role in bundle.roles) for bundle in plan.bundles]
    largest, whole = max(node.memory for node in nodes), sum(node.memory for node in nodes)
    if max(sizes, default=0) <= largest and sum(sizes) <= whole:
        return
    counted = Counter(role for bundle in plan.bundles for role in bundle.roles)
    parts = ", ".join(f"{counted[role]} x {role} {_gib(size)}" for role, size in needs.items() if counted[role])
    have = ", ".join(f"{node.name} {_gib(node.memory)}" for node in nodes)
    together = f"; those of a bundle need {_gib(max(sizes))} on one node" if max(sizes) > largest else ""
    raise PlacementError(
        f"the run's models need {_gib(sum(sizes))} of memory ({parts}), the cluster has {have}{together}",
        fix="Use a smaller model, finetuning_type: lora, bf16, or fewer num_rollouts or kv_cache_gb; or add a node.",
    )


def _does_not_fit(plan: Plan, bundle: Bundle, nodes: Sequence[NodeShape]) -> PlacementError:
    if bundle.role == "rollout" and not plan.colocated and (lacks := _largest_lacks(bundle, nodes)) is not None:
        return lacks
    kind = "GPU" if plan.gpus > sum(node.gpus for node in nodes) or bundle.gpus > 0 else "CPU"
    need = plan.gpus if kind == "GPU" else plan.cpus
    parts = ", ".join(f"{node.name} {_show(node.gpus if kind == 'GPU' else node.cpus)}" for node in nodes)
    have = sum(node.gpus if kind == "GPU" else node.cpus for node in nodes)
    ranks = sum(1 for other in plan.bundles if other.role == "trainer")
    what = f"the run needs {_show(need)} {kind}s{_by_role(plan, kind)}, the cluster has {_show(have)} ({parts})"
    if len(ranks_of(plan)) > 1:
        return PlacementError(what, fix=_fewer_replicas(plan, nodes))
    fits = math.floor(ranks * have / need) if need else ranks
    advice = f"Set num_workers: {fits} or add a node." if 0 < fits < ranks else "Add a node or lower cpus_per_worker."
    return PlacementError(what, fix=advice)


def _largest_lacks(bundle: Bundle, nodes: Sequence[NodeShape]) -> PlacementError | None:
    """A rollout replica that is larger than every node, were it empty; its workers are processes of one."""
    for kind, wanted, held in (
        # One GPU that is not there is missing like any other.
        ("GPU", bundle.gpus, max((node.gpus for node in nodes), default=0.0) or 1.0),
        ("CPU", bundle.cpus, max((node.cpus for node in nodes), default=0.0)),
    ):
        if wanted > held:
            return PlacementError(
                f"a rollout replica, whose workers are on one node, needs {_show(wanted)} {kind}s, and the largest "
                f"node has {_show(held)}",
                fix=f"Lower {'rollout_cpus or ' if kind == 'CPU' else ''}rollout_tp_size, or add such a node.",
            )
    return None


def ranks_of(plan: Plan) -> Counter[str]:
    """How many bundles each role has of its own."""
    return Counter(bundle.role for bundle in plan.bundles)


def _by_role(plan: Plan, kind: str) -> str:
    """Who needs what, where there are several roles."""
    counted = ranks_of(plan)
    if len(counted) < 2:
        return ""
    each = {bundle.role: bundle.gpus if kind == "GPU" else bundle.cpus for bundle in plan.bundles}
    return f" ({', '.join(f'{counted[role]} x {role} {_show(each[role])}' for role in counted if each[role])})"


def _fewer_replicas(plan: Plan, nodes: Sequence[NodeShape]) -> str:
    """The most rollout replicas that there is room for beside the other roles."""
    others = tuple(bundle for bundle in plan.bundles if bundle.role != "rollout")
    replicas = tuple(bundle for bundle in plan.bundles if bundle.role == "rollout")
    for count in range(len(replicas) - 1, 0, -1):
        if not isinstance(_assign(replace(plan, bundles=(*others, *replicas[:count])), nodes), Bundle):
            return f"Set num_rollouts: {count} or add a node."
    return "Add a node, set placement: colocated, or lower num_workers, num_rollouts or cpus_per_worker."


def _show(amount: float) -> str:
    return f"{amount:g}"


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"


def _grained(amount: float) -> float:
    """Rounded down, so that the parts do not exceed the whole."""
    return math.floor(amount * _GRAIN + _ROUNDING) / _GRAIN
