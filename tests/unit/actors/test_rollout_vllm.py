"""What a replica asks of vLLM's engine."""

from actors.rollout_replica import ReplicaSettings
from actors.rollout_vllm import engine_arguments

GIB = 2**30


def test_workers_are_processes_that_share_the_cache():
    alone = ReplicaSettings("m", cache_gib=3.0)
    assert not {"tensor_parallel_size", "distributed_executor_backend"} & engine_arguments(alone, gpu=True).keys()
    assert engine_arguments(alone, gpu=False)["kv_cache_memory_bytes"] == 3 * GIB
    shared = ReplicaSettings("m", cache_gib=3.0, workers=4)
    for gpu in (False, True):
        given = engine_arguments(shared, gpu=gpu)
        assert (given["tensor_parallel_size"], given["distributed_executor_backend"]) == (4, "mp")
    assert engine_arguments(shared, gpu=False)["kv_cache_memory_bytes"] == 0.75 * GIB
