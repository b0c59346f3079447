"""NEFTune: noise on the input embeddings while training."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def add_noise(model: Any, *, alpha: float) -> RemovableHandle:
    """Add uniform noise of size alpha / sqrt(T * D) to the embeddings [B, T, D] of every forward pass in train mode.

    Args: model: a transformers model, with or without adapters. alpha: strength, commonly 5 to 15.
    Returns: a handle whose remove() takes the noise away again.
    Source: Jain et al. 2023 (NEFTune), algorithm 1, with T the padded length of the batch.
    """

    def noisy(module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output
        bound = alpha / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.empty_like(output).uniform_(-bound, bound)

    return model.get_input_embeddings().register_forward_hook(noisy)
