"""The transformer block of adaLN-Zero with RMSNorm, which JiT and PixelDiT share."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.layers.attention import SelfAttention
from pointillist.layers.fused import Fused
from pointillist.layers.norm import RMSNorm, modulated_norm
from pointillist.layers.rope import Rotation


class AdaLNBlock(nn.Module):
    """x += gate * f(norm(x) (1 + scale) + shift), for attention, then for `mlp`.

    Shift, scale and gate are linear in c (time and label). The gates are zeroed by the model, so
    that a block starts as the identity (Peebles and Xie 2212.09748). q and k are normalised.
    """

    def __init__(
        self, width: int, heads: int, mlp: nn.Module, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = SelfAttention(width, heads, qk_norm=True, dropout=dropout, bias=bias)
        self.norm2 = RMSNorm(width)
        self.mlp = mlp
        self.modulation = Fused(width, 6 * width, parts=6)

    def forward(
        self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], rotation: Rotation
    ) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        h = self.attention(modulated_norm(self.norm1, x, shift1, scale1), rotation)
        x = torch.addcmul(x, gate1.unsqueeze(1), h)
        h = self.mlp(modulated_norm(self.norm2, x, shift2, scale2))
        return torch.addcmul(x, gate2.unsqueeze(1), h)
