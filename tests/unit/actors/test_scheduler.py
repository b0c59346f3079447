from actors.placement import NodeShape
from actors.scheduler import Queue, node_shapes


def test_first_come_first_served():
    queue = Queue()
    assert queue.ask("a", "a", 0, now=0.0) is None
    assert queue.ask("b", "b", 0, now=1.0) == "a"
    queue.settle("a")
    assert queue.ask("b", "b", 0, now=2.0) is None


def test_higher_priority_goes_before_earlier_arrival():
    queue = Queue()
    assert queue.ask("slow", "slow", 0, now=0.0) is None
    assert queue.ask("urgent", "urgent", 5, now=1.0) is None
    assert queue.ask("slow", "slow", 0, now=2.0) == "urgent"


def test_a_run_that_stopped_asking_loses_its_place():
    queue = Queue()
    queue.ask("dead", "dead", 0, now=0.0)
    assert queue.ask("alive", "alive", 0, now=10.0) == "dead"
    assert queue.ask("alive", "alive", 0, now=31.0) is None


def test_two_runs_of_one_name_wait_for_each_other():
    queue = Queue()
    assert queue.ask("ticket-1", "sft", 0, now=0.0) is None
    assert queue.ask("ticket-2", "sft", 0, now=1.0) == "sft"
    queue.settle("ticket-2")
    assert queue.ask("ticket-1", "sft", 0, now=2.0) is None


def test_nodes_of_one_host_stay_apart():
    alive = [
        {"NodeID": "aaaaaabbbb", "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 2.0}},
        {"NodeID": "ccccccdddd", "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 3.0, "GPU": 1.0}},
        {"NodeID": "eeeeeeffff", "NodeManagerAddress": "10.0.0.2", "Resources": {}},
    ]
    assert node_shapes(alive) == [
        NodeShape("10.0.0.1#aaaaaa", cpus=2, gpus=0),
        NodeShape("10.0.0.1#cccccc", cpus=3, gpus=1),
        NodeShape("10.0.0.2", cpus=0, gpus=0),
    ]
