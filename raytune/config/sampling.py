"""How answers are generated."""

from typing import Annotated, Literal

from pydantic import Field

from raytune.config.base import Group, NotBuilt


class SamplingConfig(Group):
    infer_backend: Annotated[Literal["huggingface", "vllm", "sglang"], NotBuilt(("vllm", "sglang"))] = "huggingface"
    """Library that generates in chat and serving."""
    use_kv_cache: Annotated[bool, NotBuilt((False,))] = True
    """Keep keys and values of earlier tokens."""
    do_sample: bool = True
    """Draw tokens by their probability; false takes the likeliest."""
    temperature: float = Field(0.95, ge=0)
    """Divides the logits before drawing: lower is safer."""
    top_p: float = Field(0.7, gt=0, le=1)
    """Draw from the smallest set of tokens with this probability together."""
    top_k: int = Field(50, ge=-1)
    """Draw from so many likeliest tokens; 0 or -1 is all."""
    num_beams: int = Field(1, ge=1)
    """Beams of a beam search."""
    max_length: int = Field(1024, ge=0)
    """Longest prompt and answer together, in tokens; used when max_new_tokens is 0."""
    max_new_tokens: int = Field(1024, ge=0)
    """Longest answer in tokens."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1 makes tokens that were there less likely."""
    length_penalty: float = 1.0
    """Above 0 favours longer beams."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the shown text."""
