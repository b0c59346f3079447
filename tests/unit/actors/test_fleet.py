"""The replicas' state machine: who may serve, and the only way back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.fleet import Fleet, FleetPolicy, State
from raytune.errors import RolloutError


def fleet_of(size: int, *, target: int = 0) -> Fleet:
    """All replicas healthy."""
    fleet = Fleet(size, FleetPolicy(misses=2, restarts=2), target=target)
    for index in range(size):
        fleet.restarted(index)
        fleet.refitted(index, target)
    return fleet


def test_nobody_serves_before_it_has_started() -> None:
    fleet = Fleet(2)
    assert fleet.pick() is None
    fleet.restarted(1)
    assert fleet.pick() is None
    fleet.refitted(1, 0)
    assert fleet.pick() == 1


def test_the_least_loaded_is_picked_and_of_equals_the_one_that_did_least() -> None:
    fleet = fleet_of(3)
    fleet.assign(0, 8)
    fleet.assign(1, 4)
    assert fleet.pick() == 2
    fleet.assign(2, 4)
    fleet.release(1, 4, done=True)
    fleet.release(2, 4, done=False)
    assert fleet.pick() == 2
    fleet.release(0, 8, done=True)
    assert [member.served for member in fleet.members] == [8, 4, 0]


def test_one_missed_heartbeat_stops_new_work_and_an_answer_brings_it_back() -> None:
    fleet = fleet_of(1)
    fleet.miss(0, "late")
    assert (fleet.state(0), fleet.pick()) == (State.SUSPECT, None)
    fleet.beat(0, 0)
    assert (fleet.state(0), fleet.pick()) == (State.HEALTHY, 0)
    fleet.miss(0, "late")
    assert fleet.state(0) is State.SUSPECT, "an answer in between forgives the first miss"


def test_the_way_back_leads_through_stale_and_a_refit_to_the_target() -> None:
    fleet = fleet_of(2, target=3)
    fleet.miss(0, "late")
    fleet.miss(0, "late")
    assert fleet.state(0) is State.DEAD
    with pytest.raises(RolloutError, match="cannot become healthy while it is dead"):
        fleet._become(0, State.HEALTHY, "")
    assert fleet.restart(0)
    fleet.beat(0, 3)
    assert fleet.state(0) is State.RESTARTING, "a heartbeat is no refit"
    fleet.restarted(0)
    fleet.beat(0, 3)
    assert fleet.state(0) is State.STALE
    fleet.refitted(0, 2)
    assert fleet.state(0) is State.STALE, "weights 2 are not the target's"
    fleet.refitted(0, 3)
    assert fleet.state(0) is State.HEALTHY


def test_one_that_missed_an_update_is_stale_until_it_has_it() -> None:
    fleet = fleet_of(3)
    fleet.advance(1, received={0, 2})
    assert [fleet.state(i) for i in range(3)] == [State.HEALTHY, State.STALE, State.HEALTHY]
    fleet.refitted(1, 1)
    assert fleet.state(1) is State.HEALTHY


def test_a_heartbeat_with_old_weights_makes_stale() -> None:
    fleet = fleet_of(1, target=4)
    fleet.beat(0, 0)
    assert fleet.state(0) is State.STALE
    assert "weights 0, not 4" in fleet.picture()


def test_an_update_during_a_refit_keeps_it_stale() -> None:
    fleet = fleet_of(1, target=1)
    fleet.lose(0, "killed")
    fleet.restart(0)
    fleet.restarted(0)
    fleet.advance(2, received=())
    fleet.refitted(0, 1)
    assert fleet.state(0) is State.STALE


def test_a_full_replica_gets_nothing_more() -> None:
    fleet = fleet_of(2)
    fleet.assign(0, 8)
    fleet.assign(1, 16)
    assert (fleet.pick(9), fleet.pick(8)) == (0, None)


def test_a_replica_that_has_an_update_before_the_router_is_told_of_it_makes_no_other_stale() -> None:
    fleet = fleet_of(2)
    fleet.beat(0, 5)
    fleet.beat(1, 0)
    fleet.assign(0, 8)
    assert fleet.pick(8) is None, "the other one gets nothing before it is known to have the weights too"
    assert "replica 1 healthy (has weights 0, not 5)" in fleet.picture()
    fleet.advance(5, received={0, 1})
    assert (fleet.state(1), fleet.pick()) == (State.HEALTHY, 1)


def test_weights_that_only_one_replica_has_are_not_served_by_others_and_do_not_end_their_work() -> None:
    fleet = fleet_of(2)
    fleet.outdated(1, "failed")
    fleet.refitted(1, 3)
    assert (fleet.state(0), fleet.state(1), fleet.pick()) == (State.HEALTHY, State.HEALTHY, 1)
    fleet.advance(4, received={0})
    assert (fleet.state(0), fleet.state(1), fleet.pick()) == (State.HEALTHY, State.STALE, 0)


def test_restarts_that_fail_again_and_again_end() -> None:
    fleet = fleet_of(1)
    fleet.lose(0, "killed")
    for _ in range(3):
        assert fleet.restart(0)
        fleet.lose(0, "no memory")
    assert not fleet.restart(0)
    assert fleet.state(0) is State.GONE
    assert "no memory" in fleet.picture()


def test_a_success_forgives_failed_restarts() -> None:
    fleet = fleet_of(1)
    for _ in range(10):
        fleet.lose(0, "killed")
        assert fleet.restart(0)
        fleet.restarted(0)
        fleet.refitted(0, 0)
    assert (fleet.state(0), fleet.members[0].restarts) == (State.HEALTHY, 10)


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0.0), (1, 1.0), (2, 2.0), (4, 8.0), (20, 60.0)])
def test_backoff_doubles_up_to_a_minute(failures: int, seconds: float) -> None:
    assert FleetPolicy().backoff(failures) == seconds


UPDATES = ("receive 0", "receive 1", "beat 0", "beat 1", "publish", "refit 0", "refit 1")


@given(st.lists(st.sampled_from(UPDATES), max_size=60))
def test_no_order_of_updates_and_heartbeats_serves_weights_that_are_not_the_published_ones(events: list[str]) -> None:
    fleet = fleet_of(2)
    engines, published = [0, 0], 0  # what each replica really has, and what the driver has told the router
    for event in events:
        what, _, index = event.partition(" ")
        healthy = [fleet.state(one) is State.HEALTHY for one in (0, 1)]
        match what:
            case "receive":
                engines[int(index)] = published + 1
            case "beat":
                fleet.beat(int(index), engines[int(index)])
            case "publish":
                published += 1
                fleet.advance(published, received={one for one in (0, 1) if engines[one] >= published})
            case "refit" if fleet.state(int(index)) is State.STALE:
                engines[int(index)] = max(engines[int(index)], published)
                fleet.refitted(int(index), engines[int(index)])
        chosen = fleet.pick()
        assert chosen is None or engines[chosen] >= published
        for one in (0, 1):
            if healthy[one] and fleet.state(one) is State.STALE:
                assert fleet.members[one].version < published, "whoever is not known to have missed one goes on"
    fleet.advance(published + 1, received=())
    for one in (0, 1):
        fleet.refitted(one, published + 1)
    assert fleet.pick() is not None


EVENTS = ("beat", "miss", "lose", "restart", "restarted", "outdated", "refitted", "advance")


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_no_order_of_events_serves_old_weights_or_skips_the_refit(events: list[str]) -> None:
    fleet = Fleet(1, FleetPolicy(restarts=100))
    seen = [fleet.state(0)]
    refits = 0
    for event in events:
        before = fleet.state(0)
        match event:
            case "beat":
                fleet.beat(0, fleet.target)
            case "miss":
                fleet.miss(0, "late")
            case "lose":
                fleet.lose(0, "killed")
            case "restart" if before is State.DEAD:
                fleet.restart(0)
            case "restarted" if before is State.RESTARTING:
                fleet.restarted(0)
            case "outdated":
                fleet.outdated(0, "failed")
            case "refitted":
                refits += before is State.STALE
                fleet.refitted(0, fleet.target)
            case "advance":
                fleet.advance(fleet.target + 1, received=())
        seen.append(fleet.state(0))
        if fleet.pick() == 0:
            assert fleet.members[0].version >= fleet.target
    returns = sum(now is State.HEALTHY and was not in (State.HEALTHY, State.SUSPECT) for was, now in pairwise(seen))
    assert returns <= refits
