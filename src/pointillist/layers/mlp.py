"""Feed-forward layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pointillist.layers.dropout import Dropout
from pointillist.layers.fused import Fused


class MLP(nn.Module):
    """Linear, GELU (tanh form unless `exact`), Linear."""

    def __init__(self, width: int, hidden: int, exact: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.approximate = "none" if exact else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class _GatedDown(torch.autograd.Function):
    """down(SiLU(gate) * up) of one tensor's halves; keeps that tensor alone.

    Torch would keep SiLU(gate) and the product too. The gradient is made of the same operations as
    torch's own.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        dtype = gate_up.dtype
        return F.linear(_gated(gate_up), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gate_up, weight = ctx.saved_tensors
        flat = g.flatten(0, -2)
        d_weight = flat.T @ _gated(gate_up).flatten(0, -2)
        d_bias = None if ctx.bias_dtype is None else flat.sum(0).to(ctx.bias_dtype)
        d = g @ weight.to(g.dtype)
        gate, up = gate_up.chunk(2, -1)
        d_gate = torch.ops.aten.silu_backward(d * up, gate)
        return torch.cat((d_gate, F.silu(gate).mul_(d)), -1), d_weight.to(weight.dtype), d_bias


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


class SwiGLU(nn.Module):
    """down(SiLU(gate x) * up x) with gate and up in one projection (Shazeer 2002.05202)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.gate_up = Fused(width, 2 * hidden, parts=2, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        if self.dropout.p and self.training:
            gate, up = gate_up.chunk(2, -1)
            return self.down(self.dropout(F.silu(gate) * up))
        return _GatedDown.apply(gate_up, self.down.weight, self.down.bias)
