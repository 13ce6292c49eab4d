"""Normalisation and modulation."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pointillist.layers.gain import gain, note


class _RMSNormCPU(torch.autograd.Function):
    """x w / rms(x) with its gradient in closed form.

    torch composes rms_norm of a dozen passes on the CPU; this takes a quarter of the time there
    (`bench/layers.py`) and keeps nothing but its input. With r = 1/rms and d entries,

        dx = r g w - x r^3 <g x, w> / d        dw = sum of g x r
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = given.to(weight.dtype)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        r = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(given, r, weight)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        given, r, weight = ctx.saved_tensors
        x = given.to(weight.dtype)
        gx = g * x
        inner = (gx @ weight)[..., None]
        d_weight = r.flatten() @ gx.flatten(0, -2)
        dx = (g * weight).mul_(r).addcmul_(x, inner * r**3 / -x.shape[-1])
        return dx.to(given.dtype), d_weight, None


class _ModulatedRMSNormCPU(torch.autograd.Function):
    """norm(x) (1 + scale) + shift, keeping x alone: norm(x) is made again for the scale's gradient.

    Two of these stand in every block, and composed of parts each would keep norm(x) as well.
    """

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        x = given.to(weight.dtype)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        r = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(given, r, weight, scale)
        ctx.shift_dtype = shift.dtype
        return modulate((x * r).mul_(weight), shift, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        given, r, weight, scale = ctx.saved_tensors
        x = given.to(weight.dtype)
        xr = x * r
        d_shift = g.sum(1)
        d_scale = (g * xr).sum(1).mul_(weight)  # before g is scaled
        g = g * (1 + scale.unsqueeze(1))
        gxr = g * xr
        d_weight = gxr.flatten(0, -2).sum(0)
        inner = (gxr @ weight)[..., None]
        dx = (g * weight).addcmul_(xr, inner / -x.shape[-1]).mul_(r)
        return (
            dx.to(given.dtype), d_weight, d_shift.to(ctx.shift_dtype), d_scale.to(scale.dtype), None
        )  # fmt: skip


class RMSNorm(nn.Module):
    """x / rms(x) times a learned gain (Zhang and Sennrich 1910.07467), in float32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Float[Tensor, "..."]:
        if x.device.type in ("cpu", "meta"):  # meta: what is kept, for `describe`
            return _RMSNormCPU.apply(x, self.weight, self.eps)
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class PlainLayerNorm(nn.LayerNorm):
    """LayerNorm without gain and bias, as adaLN supplies both."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__(width, eps=eps, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (1 + scale) + shift, one shift and scale a sample (Peebles and Xie 2212.09748)."""
    return torch.addcmul(shift.unsqueeze(1), x, gain(scale).unsqueeze(1))


def modulated_norm(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`modulate(norm(x), shift, scale)` of tokens `b n d`."""
    if isinstance(norm, RMSNorm) and x.device.type in ("cpu", "meta"):
        note(scale)
        return _ModulatedRMSNormCPU.apply(x, norm.weight, shift, scale, norm.eps)
    return modulate(norm(x), shift, scale)
