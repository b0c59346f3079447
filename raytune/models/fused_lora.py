"""LoRA layers in one step: the base product and the adapter's in place, and only what the gradient needs is kept.

peft computes `W x + scale * B (A x)` as five operations that each pass over the wide output, and casts the input to the
adapter's float32. Here the adapter is added into the base product by one `addmm`, in the base weight's dtype.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """y = x W^T + scale * (x A^T) B^T, with a frozen W.

    Shapes: x [N, I], W [O, I], A [R, I], B [O, R], y [N, O]; x and y in W's dtype, A and B in their own.
    Source of the gradients: the chain rule; with h = x A^T and g = dL/dy:
    dB = scale * g^T h, dA = scale * (g B)^T x, dx = g W + scale * (g B) A.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        hidden = x @ a.t().to(x.dtype)
        ctx.save_for_backward(x, weight, a, b, hidden)
        ctx.scale = scale
        return (x @ weight.t()).addmm_(hidden, b.t().to(x.dtype), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        (grad,) = grads
        x, weight, a, b, hidden = ctx.saved_tensors
        grad_hidden = grad @ b.to(grad.dtype)
        grad_a = (grad_hidden.t() @ x).to(a.dtype) * ctx.scale
        # Not as grad^T hidden, which takes half as long again on a CPU.
        grad_b = ((hidden.t() @ grad).to(b.dtype) * ctx.scale).t().contiguous()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_hidden, a.to(grad.dtype), alpha=ctx.scale)
        return grad_x, None, grad_a, grad_b, None


def fuse_lora(model: nn.Module) -> int:
    """Let the plain LoRA layers of a peft model compute in one step; returns how many there are.

    Layers with dropout, a bias, several adapters or a variant (DoRA) keep peft's forward.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    return len(layers)


def trains_fused_only(model: nn.Module) -> bool:
    """Whether every weight that trains sits in a fused layer, which casts for itself: autocast is not needed then."""
    fused = [m for m in model.modules() if isinstance(m.forward, partial) and m.forward.func is _forward]
    cast = {id(param) for layer in fused for param in layer.parameters()}
    return all(id(param) in cast for param in model.parameters() if param.requires_grad)


def _is_plain(layer: LoraLinear) -> bool:
    base = layer.get_base_layer()
    names = list(layer.lora_A)
    return (
        type(base) is nn.Linear
        and base.bias is None
        and len(names) == 1
        and isinstance(layer.lora_dropout[names[0]], nn.Identity)
        and not layer.lora_bias[names[0]]
        and names[0] not in layer.lora_variant
    )


def _forward(layer: LoraLinear, original: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return original(x, *args, **kwargs)
    (name,) = layer.active_adapters
    weight: Any = layer.get_base_layer().weight
    a: Any = layer.lora_A[name].weight
    b: Any = layer.lora_B[name].weight
    flat = x.to(weight.dtype).reshape(-1, x.shape[-1])
    # Autocast would cast again what has its dtype already.
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _LoraProduct.apply(flat, weight, a, b, layer.scaling[name])  # type: ignore[assignment]
    return y.view(*x.shape[:-1], y.shape[-1])
