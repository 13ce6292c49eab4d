"""Feed-forward layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.fused import Fused


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """down(SiLU(gate x) * up x) with gate and up in one projection (Shazeer 2002.05202)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate_up = Fused(width, 2 * hidden, parts=2)
        self.down = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.dropout(F.silu(gate) * up, self.dropout, self.training))
