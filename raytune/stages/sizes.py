"""How large a model is and what a rank needs for it, from its configuration alone: no weight is read."""

from dataclasses import dataclass

from raytune.config.run import RunConfig
from raytune.engine.build import compute_dtype, trainable_dtype
from raytune.engine.memory import MemoryEstimate, activation_bytes, estimate
from raytune.models.adapters import attach
from raytune.models.loader import count_parameters, load_model
from raytune.stages.build import model_shape

# Tensors of optimizer state per trainable parameter; adafactor's are factored and hardly count.
_OPTIMIZER_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1, "adafactor": 0}


# Made here, read by `raytune plan` and the launch of reinforcement learning.
@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters, and bytes of one rank.

    Example: Sizes(2442240, 136957248, MemoryEstimate(547829000, 9768960, 19537920, 0))
    """

    num_trainable: int
    num_parameters: int
    rank: MemoryEstimate


def sizes_of(cfg: RunConfig) -> Sizes:
    """The sizes of the model that a config trains."""
    compute, trained = compute_dtype(cfg.precision), trainable_dtype(cfg.precision)
    model = load_model(cfg.model, dtype=compute, cutoff_len=cfg.data.cutoff_len, meta=True)
    # Weights of existing adapters do not change the sizes, and cannot be loaded onto nothing.
    adapter = cfg.adapter.model_copy(update={"adapter_name_or_path": ()})
    trainable, total = count_parameters(attach(model, adapter, trainable_dtype=trained))
    tokens = cfg.train.max_tokens_per_batch or cfg.train.per_device_train_batch_size * cfg.data.cutoff_len
    kept = activation_bytes(
        model_shape(model.config),
        tokens=tokens,
        dtype_bytes=compute.itemsize,
        checkpointing=cfg.precision.gradient_checkpointing is True,
    )
    rank = estimate(
        num_parameters=total,
        num_trainable=trainable,
        frozen_bytes=compute.itemsize,
        trainable_bytes=trained.itemsize,
        optimizer_states=_OPTIMIZER_STATES[cfg.optim.optim],
        shards=cfg.cluster.num_workers if cfg.cluster.engine == "fsdp2" else 1,
        activations=kept,
    )
    return Sizes(trainable, total, rank)
