"""Which weights are trained: an adapter, all of them, or a few layers."""

from typing import Annotated, Literal

from pydantic import Field

from raytune.config.base import Group, Names, NotBuilt


class AdapterConfig(Group):
    finetuning_type: Annotated[Literal["lora", "full", "freeze", "oft"], NotBuilt(("oft",))] = "lora"
    """What is trained: low-rank adapters, all weights, some layers, or orthogonal adapters."""
    adapter_name_or_path: Names = ()
    """Adapters to start from; all but the last are merged into the model, the last is trained on."""
    adapter_folder: str | None = None
    """Folder in which adapter_name_or_path is looked up."""
    create_new_adapter: bool = False
    """Merge all given adapters and train a fresh one on top."""
    additional_target: Names = ()
    """Modules beside the adapter that are trained whole and saved with it."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the low-rank update."""
    lora_alpha: int | None = Field(None, ge=1)
    """Scale of the update, which is multiplied by alpha / rank; null is twice the rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is dropped in training."""
    lora_target: Names = Field(("all",), min_length=1)
    """Modules that get an adapter, by name; `all` is every linear layer but the head."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    use_dora: Annotated[bool, NotBuilt()] = False
    """Learn magnitude and direction apart (DoRA)."""
    pissa_init: Annotated[bool, NotBuilt()] = False
    """Start the adapter from the principal singular vectors (PiSSA)."""
    pissa_iter: Annotated[int, NotBuilt()] = Field(16, ge=-1)
    """Iterations of the fast singular value decomposition; -1 is the exact one."""
    pissa_convert: Annotated[bool, NotBuilt()] = False
    """Save a PiSSA adapter as an ordinary one."""
    use_loftq: Annotated[bool, NotBuilt()] = False
    """Start the adapter from the error of quantization (LoftQ)."""
    freeze_trainable_layers: int = 2
    """Layers that `freeze` trains: n > 0 the last n, n < 0 the first n."""
    freeze_trainable_modules: Names = Field(("all",), min_length=1)
    """Modules inside those layers that are trained; `all` is the whole layer."""
    freeze_extra_modules: Names = ()
    """Modules outside the layers that `freeze` trains too; `all` is embeddings, last norm and head."""
    use_llama_pro: Annotated[bool, NotBuilt()] = False
    """Train only the blocks that were added to an expanded model (LLaMA Pro)."""
