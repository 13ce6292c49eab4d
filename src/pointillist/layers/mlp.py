"""Feed-forward layers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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


class _Gate(torch.autograd.Function):
    """SiLU(gate) * up of one tensor's halves; keeps that tensor alone, where torch keeps SiLU too.

    The gradient is made of the same operations as torch's own, so it has the same bits.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        d_gate = torch.ops.aten.silu_backward(g * up, gate)
        return torch.cat((d_gate, F.silu(gate).mul_(g)), -1)


class SwiGLU(nn.Module):
    """down(SiLU(gate x) * up x) with gate and up in one projection (Shazeer 2002.05202)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.gate_up = Fused(width, 2 * hidden, parts=2, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        h = _Gate.apply(self.gate_up(x))
        return self.down(F.dropout(h, self.dropout, self.training))
