import pytest

from actors.placement import (
    NODE_TO_COME,
    Bundle,
    NodeShape,
    Plan,
    homes,
    make_plan,
    num_threads,
    place,
    share_of_cpus,
)
from raytune.errors import PlacementError


def plan(ranks: int, *, cpus: float = 1, gpus: float = 0) -> Plan:
    return make_plan("run", num_ranks=ranks, cpus_per_rank=cpus, gpus_per_rank=gpus)


def test_packs_onto_as_few_nodes_as_hold_the_plan():
    nodes = [NodeShape("a", cpus=4, gpus=2), NodeShape("b", cpus=4, gpus=2)]
    assert place(plan(3, gpus=1), nodes) == ["a", "a", "b"]


def test_large_bundles_are_placed_before_small_ones():
    nodes = [NodeShape("a", cpus=2, gpus=0), NodeShape("b", cpus=4, gpus=1)]
    small, large = Bundle("reward", 0, cpus=1, gpus=0), Bundle("trainer", 0, cpus=4, gpus=1)
    assert place(Plan("run", (small, large)), nodes) == ["a", "b"]


def test_too_few_gpus_gives_the_arithmetic_and_the_remedy():
    nodes = [NodeShape("node-a", cpus=64, gpus=4), NodeShape("node-b", cpus=64, gpus=0)]
    with pytest.raises(PlacementError) as caught:
        place(plan(8, gpus=1), nodes)
    assert str(caught.value) == (
        "the run needs 8 GPUs, the cluster has 4 (node-a 4, node-b 0). Set num_workers: 4 or add a node."
    )


def test_too_few_cpus_are_named_too():
    with pytest.raises(PlacementError, match=r"needs 6 CPUs, the cluster has 4 \(a 4\)"):
        place(plan(6), [NodeShape("a", cpus=4, gpus=0)])


def test_a_bundle_never_spans_nodes():
    nodes = [NodeShape("a", cpus=4, gpus=0), NodeShape("b", cpus=4, gpus=0)]
    with pytest.raises(PlacementError, match="Add a node or lower cpus_per_worker"):
        place(plan(1, cpus=6), nodes)


def test_a_plan_too_large_for_the_living_nodes_waits_only_for_an_autoscaler():
    nodes = [NodeShape("head", cpus=1, gpus=0)]
    assert homes(plan(2), nodes, adds_nodes=True) == [NODE_TO_COME] * 2
    assert homes(plan(1), nodes, adds_nodes=True) == ["head"]
    with pytest.raises(PlacementError, match="needs 2 CPUs, the cluster has 1"):
        homes(plan(2), nodes, adds_nodes=False)


@pytest.mark.parametrize("ranks", range(1, 13))
def test_a_share_is_the_most_that_places_all_ranks(ranks):
    nodes = [NodeShape("a", cpus=16, gpus=0), NodeShape("b", cpus=6, gpus=0), NodeShape("c", cpus=3, gpus=0)]
    share = share_of_cpus(nodes, num_ranks=ranks, gpus_per_rank=0)
    place(plan(ranks, cpus=share), nodes)
    with pytest.raises(PlacementError):
        place(plan(ranks, cpus=share + 1), nodes)


@pytest.mark.parametrize(("ranks", "gpus", "share"), [(1, 1, 12), (4, 1, 12), (5, 1, 4), (8, 0.5, 6), (1, 2, 24)])
def test_a_rank_on_a_gpu_takes_that_gpus_part_of_the_cpus(ranks, gpus, share):
    nodes = [NodeShape("head", 64, 0), NodeShape("a", cpus=48, gpus=4), NodeShape("b", cpus=16, gpus=4)]
    assert share_of_cpus(nodes, num_ranks=ranks, gpus_per_rank=gpus) == share


def test_a_share_of_too_little_is_one_cpu_and_the_plan_says_no():
    assert share_of_cpus([NodeShape("a", cpus=8, gpus=0)], num_ranks=20, gpus_per_rank=0) == 1
    assert share_of_cpus([NodeShape("a", cpus=8, gpus=0)], num_ranks=1, gpus_per_rank=1) == 1
    assert share_of_cpus([], num_ranks=1, gpus_per_rank=0) == 1


@pytest.mark.parametrize(
    ("reserved", "of_node", "cores", "threads"),
    [(2, 2, 2, 2), (1, 2, 2, 1), (8, 8, 2, 2), (4, 8, 2, 1), (1, 1, 2, 1), (8, 8, 64, 8), (0.5, 4, 4, 1), (1, 0, 4, 1)],
)
def test_ranks_compute_with_what_they_reserve_but_never_with_more_than_the_host(reserved, of_node, cores, threads):
    assert num_threads(reserved, of_node=of_node, cores=cores) == threads
