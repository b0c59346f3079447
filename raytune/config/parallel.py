"""Training backends that split a model by tensors, layers, experts or context."""

from typing import ClassVar

from pydantic import Field

from raytune.config.base import Group


class ParallelConfig(Group):
    built: ClassVar[bool] = False

    use_mca: bool = False
    """Train with Megatron Core through its adapter."""
    use_megatron_bridge: bool = False
    """Train with Megatron Bridge."""
    use_hyper_parallel: bool = False
    """Train with HyperParallel."""
    hyper_parallel_args: str | None = None
    """JSON file of HyperParallel's strategy."""
    hyper_parallel_cp_size: int = Field(1, ge=1)
    """Ranks that share one sequence under HyperParallel."""
    tensor_model_parallel_size: int = Field(1, ge=1)
    """Ranks that share each matrix."""
    pipeline_model_parallel_size: int = Field(1, ge=1)
    """Ranks that share the layers."""
    virtual_pipeline_model_parallel_size: int | None = Field(None, ge=1)
    """Interleaved stages per pipeline rank."""
    expert_model_parallel_size: int = Field(1, ge=1)
    """Ranks that share the experts."""
    context_parallel_size: int = Field(1, ge=1)
    """Ranks that share one sequence."""
    sequence_parallel: bool = False
    """Share activations of norms and dropout among tensor-parallel ranks."""
    account_for_embedding_in_pipeline_split: bool | None = None
    """Count the embedding as a layer when layers are split."""
    account_for_loss_in_pipeline_split: bool | None = None
    """Count the loss as a layer when layers are split."""
    megatron_pretrained_checkpoint: str | None = None
    """Weights in Megatron's format to start from."""
    export_hf_on_finish: bool = False
    """Convert the result to Hugging Face's format."""
    extra_config: str | None = None
    """Further Megatron settings: JSON, or a file of it."""
