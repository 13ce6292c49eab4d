"""The transformer block of adaLN-Zero with RMSNorm, which JiT and PixelDiT share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.layers.attention import SelfAttention
from pointillist.layers.cross_attention import Keys
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
        self,
        x: Float[Tensor, "b n d"],
        c: Float[Tensor, "b d"],
        rotation: Rotation | None,
        beside: Keys | None = None,
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`beside`, `mask`: as in `SelfAttention`."""
        h, rest = self.enter(x, c)
        return self.leave(x, self.attention(h, rotation, beside, mask), rest)

    def enter(
        self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b n d"], tuple[Tensor, ...]]:
        """What the attention is asked, and the modulation of what follows it."""
        shift, scale, *rest = self.modulation(c).chunk(6, -1)
        return modulated_norm(self.norm1, x, shift, scale), tuple(rest)

    def leave(
        self, x: Float[Tensor, "b n d"], h: Float[Tensor, "b n d"], rest: tuple[Tensor, ...]
    ) -> Float[Tensor, "b n d"]:
        """The tokens behind the block, h being the attention's answer."""
        gate1, shift, scale, gate2 = rest
        x = torch.addcmul(x, gate1.unsqueeze(1), h)
        h = self.mlp(modulated_norm(self.norm2, x, shift, scale))
        return torch.addcmul(x, gate2.unsqueeze(1), h)
