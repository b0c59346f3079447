"""What scores an answer."""

from typing import Annotated, Literal

from pydantic import Field

from raytune.config.base import Floats, Group, Names, NotBuilt


class RewardConfig(Group):
    reward_funcs: Names = ()
    """Functions that score answers: built-in names, package.module:function or file.py:function."""
    reward_weights: Floats = ()
    """Weight of each function in the sum, in their order, the reward model's last; none is 1 each, 0 only watches."""
    reward_time_limit: float = Field(60.0, gt=0)
    """Seconds a function may take for a batch before its answers count as unscorable."""
    reward_answer_column: str = "solution"
    """Column with the right answers (math, exact, number)."""
    reward_regex: str | None = None
    """Pattern that must be found in the answer (regex)."""
    overlong_buffer_len: int = Field(256, ge=1)
    """Tokens before max_new_tokens in which an answer's punishment grows to the full (overlong)."""
    overlong_penalty_factor: float = Field(1.0, ge=0)
    """Full punishment of an answer that is too long (overlong)."""
    code_tests_column: str = "tests"
    """Column with the tests of a program: statements, or mappings of input and output (code)."""
    code_time_limit: float = Field(5.0, gt=0)
    """Seconds for all tests of an answer; less where a group's answers together would pass reward_time_limit (code)."""
    code_memory_limit: float = Field(1.0, gt=0)
    """Memory of a program in GiB (code)."""
    judge_url: str | None = None
    """Base address of an OpenAI-compatible server, such as https://host/v1 (judge)."""
    judge_model: str | None = None
    """Model that judges (judge)."""
    judge_api_key: str | None = None
    """Key of that server (judge)."""
    judge_prompt: str | None = None
    """What the judge is told, with {prompt}, {completion} and {name of a column}; null asks for 0 to 1 (judge)."""
    judge_score_regex: str = (
        r"(?i)score(?:[^\w\n]*[(\[][^)\]\n]*[)\]][^\w\n]*[:=])?\W+?(-?(?:\d+(?:[.,]\d+)?|(?<!\.)\.\d+))"
    )
    """Pattern whose only group is the score, with a point or a comma; the last match in the reply counts (judge)."""
    reward_model: str | None = None
    """Reward model: the output_dir of stage rm, a hub id, or a URL with reward_model_type api."""
    reward_model_type: Literal["lora", "full", "api"] = "lora"
    """Whether it is an adapter of model_name_or_path, a whole model or a server."""
    reward_model_adapters: Names = ()
    """Adapters on a whole reward model; the last one has the value head."""
    reward_model_quantization_bit: Annotated[int | None, NotBuilt()] = Field(None, ge=1, le=8)
    """Bits per weight of the reward model."""
