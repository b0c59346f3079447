from actors.scheduler import Queue


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
