"""When and what to evaluate, and what follows from it."""

from typing import Annotated

from pydantic import Field

from raytune.config.base import Group, NotBuilt, When


class EvalConfig(Group):
    eval_strategy: When = "no"
    """When to evaluate while training."""
    eval_steps: float | None = Field(None, gt=0)
    """Optimizer steps between two evaluations, below 1 a share of all steps; null is logging_steps."""
    eval_delay: Annotated[float, NotBuilt()] = Field(0, ge=0)
    """Epochs or steps before the first evaluation."""
    eval_on_start: bool = False
    """Evaluate once before the first step."""
    load_best_model_at_end: bool = False
    """End with the weights of the best evaluation instead of the last."""
    metric_for_best_model: str | None = None
    """Metric that says which is best; null is eval_loss, in ppo and grpo eval_reward."""
    greater_is_better: bool | None = None
    """Whether more is better; null is true unless the metric's name ends in `loss`."""
    early_stopping_steps: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better one."""
    eval_num_generations: int = Field(4, ge=1)
    """Answers to each held-out prompt, from which pass@k is estimated (ppo, grpo)."""
    eval_temperature: float | None = Field(None, ge=0)
    """Divides the logits for those answers; null is temperature, 0 takes the likeliest token (ppo, grpo)."""
    compute_accuracy: bool = False
    """Also report the share of tokens that are guessed right."""
    predict_with_generate: Annotated[bool, NotBuilt()] = False
    """Evaluate generated answers with BLEU and ROUGE (sft)."""
    eval_num_beams: Annotated[int | None, NotBuilt()] = Field(None, ge=1)
    """Beams for those answers."""
    generation_max_length: Annotated[int | None, NotBuilt()] = Field(None, ge=1)
    """Longest prompt and answer together, in tokens; null is cutoff_len."""
    generation_num_beams: Annotated[int | None, NotBuilt()] = Field(None, ge=1)
    """Beams for those answers when eval_num_beams is null."""
