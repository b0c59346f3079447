from actors.placement import NodeShape
from actors.scheduler import Queue, node_shapes


def test_first_come_first_served():
    queue = Queue()
    assert queue.ask("a", 0, now=0.0) is None
    assert queue.ask("b", 0, now=1.0) == "a"
    queue.settle("a")
    assert queue.ask("b", 0, now=2.0) is None


def test_higher_priority_goes_before_earlier_arrival():
    queue = Queue()
    assert queue.ask("slow", 0, now=0.0) is None
    assert queue.ask("urgent", 5, now=1.0) is None
    assert queue.ask("slow", 0, now=2.0) == "urgent"


def test_a_run_that_stopped_asking_loses_its_place():
    queue = Queue()
    queue.ask("dead", 0, now=0.0)
    assert queue.ask("alive", 0, now=10.0) == "dead"
    assert queue.ask("alive", 0, now=31.0) is None


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
