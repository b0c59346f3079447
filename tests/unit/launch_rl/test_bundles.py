import time

import pytest

from actors.placement import Bundle, NodeShape, Plan, check_memory, place
from raytune.config.load import load_config
from raytune.config.run import RunConfig
from raytune.errors import ConfigError, PlacementError
from raytune.launch_rl.bundles import plan_answers

GIB = 2**30


def config(**keys: object) -> RunConfig:
    whole = {"model_name_or_path": "m", "stage": "grpo", "reward_funcs": "exact", "temperature": 1.0, "top_p": 1.0}
    return load_config({**whole, "dataset": "d", "output_dir": "o", **keys}).config


def planned(shapes: list[NodeShape], *, gpus: float = 0, grows: bool = False, **keys: object) -> Plan:
    plan = plan_answers(config(**keys), shapes, run="run", gpus=gpus, grows=grows)
    return plan


def test_apart_each_actor_has_a_bundle_and_ranks_share_what_replicas_leave():
    plan = planned([NodeShape("a", 16, 0)], num_workers=2, num_rollouts=2, rollout_cpus=3, placement="disaggregated")
    assert [(one.role, one.cpus) for one in plan.bundles] == [
        ("trainer", 4), ("trainer", 4), ("rollout", 3), ("rollout", 3), ("reward", 1),
    ]  # fmt: skip
    assert not plan.colocated


def test_together_they_have_all_cpus_in_turn_and_ray_counts_each_a_part():
    plan = planned([NodeShape("a", 16, 0)], num_workers=2, num_rollouts=2, placement="colocated")
    assert [(one.roles, one.cpus) for one in plan.bundles] == [
        (("trainer", "rollout", "reward"), 8), (("trainer", "rollout"), 8),
    ]  # fmt: skip
    assert plan.colocated
    assert plan.of_role("rollout") == [0, 1]
    assert plan.bundles[1].seat("trainer") == (4.0, 0.0)
    # A third of 8, cut off behind the fourth place.
    assert plan.bundles[0].seat("reward") == (2.6666, 0.0)


def test_together_on_gpus_each_has_half_a_gpu_and_rewards_none():
    plan = planned([NodeShape("a", 8, 2)], gpus=1, num_workers=2, num_rollouts=2, placement="colocated")
    assert [one.gpus for one in plan.bundles] == [1, 1]
    assert [plan.bundles[0].seat(role)[1] for role in ("trainer", "rollout", "reward")] == [0.5, 0.5, 0.0]


def test_more_replicas_than_ranks_have_bundles_of_their_own():
    plan = planned([NodeShape("a", 9, 0)], num_workers=1, num_rollouts=3, placement="colocated")
    assert [one.roles for one in plan.bundles] == [("trainer", "rollout", "reward"), ("rollout",), ("rollout",)]
    assert plan.of_role("rollout") == [0, 1, 2]


def test_a_gpu_cannot_be_shared_in_pairs():
    with pytest.raises(ConfigError, match="gpus_per_worker is 2"):
        planned([NodeShape("a", 8, 2)], gpus=2, placement="colocated")


def test_workers_of_a_replica_have_one_bundle_on_one_node():
    shapes = [NodeShape("a", 8, 2), NodeShape("b", 8, 2)]
    plan = planned(shapes, gpus=1, num_workers=1, num_rollouts=1, rollout_tp_size=2, rollout_cpus=3)
    (replica,) = (plan.bundles[index] for index in plan.of_role("rollout"))
    assert replica.resources() == {"CPU": 6, "GPU": 2}
    assert replica.seat("rollout") == (6, 2)
    homes = place(plan, shapes)
    assert homes[plan.of_role("trainer")[0]] != homes[plan.of_role("rollout")[0]]
    on_cpu = planned([NodeShape("a", 8, 0)], num_rollouts=2, rollout_tp_size=2, rollout_cpus=1.5)
    assert [on_cpu.bundles[index].resources() for index in on_cpu.of_role("rollout")] == [{"CPU": 3.0}, {"CPU": 3.0}]


@pytest.mark.parametrize(
    ("nodes", "gpus", "said"),
    [
        (
            [(64, 2), (64, 2)],
            1,
            "needs 4 GPUs, and the largest node has 2. Lower rollout_tp_size, or",
        ),
        ([(6, 0), (7, 0)], 0, "needs 8 CPUs, and the largest node has 7. Lower rollout_cpus or rollout_tp_size, or"),
    ],
)
def test_more_workers_than_any_node_has_devices_are_refused(nodes, gpus, said):
    shapes = [NodeShape(name, *size) for name, size in zip("ab", nodes, strict=True)]
    with pytest.raises(PlacementError) as caught:
        place(planned(shapes, gpus=gpus, rollout_tp_size=4, rollout_cpus=2), shapes)
    assert said in str(caught.value)


def test_workers_do_not_take_turns_with_ranks():
    one_gpu = [NodeShape("a", 8, 2)]
    assert not planned(one_gpu, gpus=1, rollout_tp_size=2).colocated
    with pytest.raises(
        ConfigError, match=r"rollout_tp_size 2 wants several ranks' devices\. Set rollout_tp_size: 1, or"
    ):
        planned(one_gpu, gpus=1, rollout_tp_size=2, placement="colocated")


def test_auto_takes_turns_only_where_there_is_no_room_apart_and_says_why():
    one_gpu, two_gpus = [NodeShape("a", 8, 1)], [NodeShape("a", 8, 2)]
    assert not planned(two_gpus, gpus=1).colocated
    plan = planned(one_gpu, gpus=1)
    assert plan.colocated
    assert plan.note == (
        "ranks and rollout replicas take turns (placement: colocated): apart the run needs 2 GPUs (1 x trainer 1, "
        "1 x rollout 1), the cluster has 1 (a 1)"
    )
    assert place(plan, one_gpu) == ["a"]


@pytest.mark.parametrize("keys", [{"max_staleness": 1}, {"grows": True}, {"num_workers": 2, "num_rollouts": 2}])
def test_auto_stays_apart_where_turns_would_not_help(keys):
    grows = bool(keys.pop("grows", False))
    assert not planned([NodeShape("a", 8, 1)], gpus=1, grows=grows, **keys).colocated


def test_too_many_replicas_are_refused_by_numbers_with_the_most_that_fit():
    shapes = [NodeShape("a", 4, 0), NodeShape("b", 2, 0)]
    plan = planned(shapes, num_rollouts=8, placement="disaggregated")
    with pytest.raises(PlacementError) as caught:
        place(plan, shapes)
    assert str(caught.value) == (
        "the run needs 10 CPUs (1 x trainer 1, 8 x rollout 1, 1 x reward 1), the cluster has 6 (a 4, b 2). "
        "Set num_rollouts: 4 or add a node."
    )


def test_hundreds_of_replicas_are_refused_as_fast():
    shapes = [NodeShape("a", 8, 0)]
    started = time.process_time()
    with pytest.raises(PlacementError, match=r"402 CPUs .* Set num_rollouts: 6"):
        place(planned(shapes, num_rollouts=400, placement="disaggregated"), shapes)
    assert time.process_time() - started < 2


def test_models_that_no_memory_holds_are_refused_with_the_arithmetic():
    bundles = (Bundle("trainer", 0, 1, 0), Bundle("rollout", 0, 1, 0), Bundle("rollout", 1, 1, 0))
    needs = {"trainer": 8 * GIB, "rollout": 3 * GIB}
    check_memory(Plan("run", bundles), needs, [NodeShape("a", 4, 0, 8 * GIB), NodeShape("b", 4, 0, 6 * GIB)])
    check_memory(Plan("run", bundles), needs, [NodeShape("a", 4, 0, 1 * GIB), NodeShape("b", 4, 0)])
    with pytest.raises(PlacementError) as caught:
        check_memory(Plan("run", bundles), needs, [NodeShape("a", 4, 0, 13 * GIB)])
    assert "need 14.0 GiB of memory (1 x trainer 8.0 GiB, 2 x rollout 3.0 GiB), the cluster has a 13.0 GiB" in str(
        caught.value
    )
    shared = Plan("run", (Bundle("trainer", 0, 1, 0, ("rollout",)),))
    with pytest.raises(PlacementError, match=r"those of a bundle need 11.0 GiB on one node"):
        check_memory(shared, needs, [NodeShape("a", 4, 0, 9 * GIB), NodeShape("b", 4, 0, 9 * GIB)])
