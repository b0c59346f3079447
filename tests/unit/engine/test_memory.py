from raytune.engine.memory import MemoryEstimate, ModelShape, activation_bytes, estimate, needs_checkpointing


def fp32_adamw(**changes: int) -> MemoryEstimate:
    """A rank that trains all of its 1000 float32 parameters with AdamW, but for `changes`."""
    sizes = {"num_parameters": 1000, "num_trainable": 1000, "frozen_bytes": 4, "trainable_bytes": 4}
    return estimate(**{**sizes, "optimizer_states": 2, "shards": 1, "activations": 0, **changes})


def test_adamw_in_float32_takes_sixteen_bytes_a_parameter():
    # 4 weights + 4 gradients + 8 optimizer, the usual accounting of full fp32 training.
    memory = fp32_adamw()
    assert memory.total == 16 * 1000


def test_lora_keeps_no_optimizer_for_frozen_weights():
    memory = fp32_adamw(num_trainable=10, frozen_bytes=2, activations=7)
    assert (memory.weights, memory.gradients, memory.optimizer, memory.activations) == (990 * 2 + 40, 40, 80, 7)


def test_shards_divide_everything_but_activations():
    memory = fp32_adamw(shards=4, activations=100)
    assert memory.total == 16 * 1000 // 4 + 100


def test_recomputing_keeps_one_vector_a_layer_and_one_layer_whole():
    shape = ModelShape(hidden=8, layers=3, intermediate=16, vocab=100)
    layer = 10 * 8 + 4 * 16
    logits = 2 * 4 * 100
    assert activation_bytes(shape, tokens=5, dtype_bytes=2, checkpointing=False) == 5 * (3 * layer * 2 + logits)
    assert activation_bytes(shape, tokens=5, dtype_bytes=2, checkpointing=True) == 5 * ((3 * 8 + layer) * 2 + logits)


def test_recompute_only_when_memory_is_short():
    assert needs_checkpointing(60, free=100)
    assert not needs_checkpointing(40, free=100)
