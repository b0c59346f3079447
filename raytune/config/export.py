"""Merging adapters and writing a model for others."""

from typing import Annotated, Literal

from pydantic import Field

from raytune.config.base import Group, NotBuilt

GgufType = Literal["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]


class ExportConfig(Group):
    export_dir: str | None = None
    """Folder for the merged model."""
    export_size: float = Field(5, gt=0)
    """Largest weight file in GB."""
    export_device: Literal["cpu", "auto"] = "cpu"
    """Where the merge is computed; auto is a GPU where there is one."""
    export_quantization_bit: Annotated[Literal[2, 3, 4, 8] | GgufType | None, NotBuilt()] = None
    """Quantize the result: bits of GPTQ, or a GGUF type."""
    export_quantization_dataset: Annotated[str | None, NotBuilt()] = None
    """Data set that GPTQ calibrates on."""
    export_quantization_nsamples: Annotated[int, NotBuilt()] = Field(128, ge=1)
    """Rows that GPTQ calibrates on."""
    export_quantization_maxlen: Annotated[int, NotBuilt()] = Field(1024, ge=1)
    """Longest such row in tokens."""
    export_hub_model_id: Annotated[str | None, NotBuilt()] = None
    """Hugging Face repository to upload the result to."""
    export_without_template: Annotated[bool, NotBuilt()] = False
    """Write the Modelfile without a template."""
