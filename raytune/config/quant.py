"""Quantization of the frozen weights while adapters are trained."""

from typing import ClassVar, Literal

from pydantic import Field

from raytune.config.base import Group


class QuantConfig(Group):
    built: ClassVar[bool] = False

    quantization_bit: int | None = Field(None, ge=1, le=8)
    """Bits per frozen weight: 4 or 8 (bnb), 1 to 6 or 8 (hqq), 8 (eetq); null is none."""
    quantization_method: Literal["bnb", "hqq", "eetq"] = "bnb"
    """Library that quantizes while loading."""
    quantization_type: Literal["fp4", "nf4"] = "nf4"
    """Number format of bitsandbytes' 4-bit weights."""
    double_quantization: bool = True
    """Quantize the scales of bitsandbytes' 4-bit weights as well."""
    quantization_device_map: Literal["auto"] | None = None
    """Spread a quantized model over the GPUs of one process; for inference only."""
    bnb_4bit_compute_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Type in which 4-bit weights are multiplied; auto follows bf16 and fp16."""
