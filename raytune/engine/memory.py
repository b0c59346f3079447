"""How much memory a rank needs, estimated before anything is loaded, and what to do when it is short."""

from dataclasses import dataclass

# Share of the free memory that activations may take before they are recomputed instead of kept.
_ACTIVATION_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that decide its memory.

    Example: ModelShape(hidden=576, layers=30, intermediate=1536, vocab=49152)
    """

    hidden: int
    layers: int
    intermediate: int
    vocab: int


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes per rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def activation_bytes(shape: ModelShape, *, tokens: int, dtype_bytes: int, checkpointing: bool) -> int:
    """Bytes kept between forward and backward for one micro-batch of `tokens` padded tokens.

    Per layer and token: the inputs of both norms, of the attention and of the MLP projections, queries, keys, values
    and the attention's output (about 10 hidden-size vectors), and the gate, up, activated and multiplied vectors of a
    gated MLP (4 of the intermediate size). The logits count once in float32 with their gradient.
    Source: the accounting of Korthikanti et al. 2022, section 4.1, for a gated MLP and fused attention.
    """
    per_layer = shape.hidden if checkpointing else 10 * shape.hidden + 4 * shape.intermediate
    one_layer = (10 * shape.hidden + 4 * shape.intermediate) if checkpointing else 0
    return tokens * ((per_layer * shape.layers + one_layer) * dtype_bytes + 2 * 4 * shape.vocab)


def estimate(
    *,
    num_parameters: int,
    num_trainable: int,
    frozen_bytes: int,
    trainable_bytes: int,
    optimizer_states: int,
    shards: int,
    activations: int,
) -> MemoryEstimate:
    """Bytes of one rank.

    Args: frozen_bytes, trainable_bytes: per parameter. optimizer_states: float tensors per trainable parameter (AdamW
    has 2). shards: ranks among which weights, gradients and optimizer are divided (1 for single and ddp).
    """
    frozen = num_parameters - num_trainable
    return MemoryEstimate(
        weights=(frozen * frozen_bytes + num_trainable * trainable_bytes) // shards,
        gradients=num_trainable * trainable_bytes // shards,
        optimizer=num_trainable * trainable_bytes * optimizer_states // shards,
        activations=activations,
    )


def needs_checkpointing(activations: int, free: int) -> bool:
    """Decide `gradient_checkpointing: auto`: recompute only when keeping activations could fill the memory."""
    return activations > _ACTIVATION_SHARE * free
