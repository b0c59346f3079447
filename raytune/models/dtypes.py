"""Names of dtypes in the config."""

import torch

INFER_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""What `infer_dtype` means; None is the dtype of the model's own weights."""
