"""Optimizer and learning rate."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from raytune.config.base import Group, Names, NotBuilt

BuiltOptimizer = Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
LaterOptimizer = Literal[
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "ademamix",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "stable_adamw",
]
Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]


class OptimConfig(Group):
    learning_rate: float = Field(5e-5, ge=0)
    """Peak learning rate."""
    lr_scheduler_type: Schedule = "linear"
    """Course of the learning rate after warm-up."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Further arguments of that course, such as min_lr or num_cycles."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Share of all steps over which the learning rate rises; warmup_steps goes before it."""
    warmup_steps: float = Field(0, ge=0)
    """Steps over which the learning rate rises; below 1 a share of all steps."""
    optim: Annotated[BuiltOptimizer | LaterOptimizer, NotBuilt(get_args(LaterOptimizer))] = "adamw_torch_fused"
    """Optimizer."""
    optim_args: str | None = None
    """Further arguments of the optimizer, as "name=value,name=value"."""
    optim_target_modules: Annotated[Names, NotBuilt()] = ()
    """Modules that a low-rank optimizer works on."""
    weight_decay: float = Field(0.0, ge=0)
    """Pull towards zero per step, on matrices but not on biases and norms."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Memory of the mean of gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Memory of the square of gradients."""
    adam_epsilon: float = Field(1e-8, ge=0)
    """Added under the division."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are shortened to it; 0 never."""
    loraplus_lr_ratio: Annotated[float | None, NotBuilt()] = Field(None, gt=0)
    """Learning rate of the adapter's B over that of its A (LoRA+)."""
    loraplus_lr_embedding: Annotated[float, NotBuilt()] = Field(1e-6, ge=0)
    """Learning rate of adapters on embeddings (LoRA+)."""
    use_muon: Annotated[bool, NotBuilt()] = False
    """Optimize matrices with Muon and the rest with AdamW."""
    use_adam_mini: Annotated[bool, NotBuilt()] = False
    """Optimize with Adam-mini, one second moment per block."""
