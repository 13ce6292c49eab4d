"""Perceiver IO: many inputs into few latents, and as many answers as are asked (2107.14795)."""

import functools

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.draws import Draw
from pointillist.layers.coordinates import in_float32
from pointillist.layers.cross_attention import CrossAttention, Keys
from pointillist.layers.embed import CPU, TABLES
from pointillist.layers.mlp import MLP


@functools.lru_cache(TABLES)
def gaussian_frequencies(
    axes: int, count: int, std: float, device: torch.device = CPU
) -> Float[Tensor, "f s"]:
    """The same in every run, so no checkpoint holds them. The table is kept: do not write to it."""
    index = torch.arange(count, device=CPU)
    return (std * Draw(0, index).normal("frequencies", (axes,))).to(device)


class GaussianFeatures(nn.Module):
    """[sin, cos] of 2 pi B x, the rows of B drawn once from N(0, std^2) (2006.10739).

    They are cycles per unit of the coordinates: with cells of width w nothing above 1/(2w) can be
    told from something lower. In float32 whatever the autocast.
    """

    def __init__(self, axes: int, count: int, std: float) -> None:
        super().__init__()
        self.axes, self.count, self.std = axes, count, std

    def frequencies(self, device: torch.device) -> Float[Tensor, "f s"]:
        return gaussian_frequencies(self.axes, self.count, self.std, device)

    def forward(self, at: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        with in_float32(at):
            phase = 2 * torch.pi * at.float() @ self.frequencies(at.device).T
            return torch.cat((phase.sin(), phase.cos()), -1)


class Block(nn.Module):
    """z += attention(LN z, inputs), z += attention(LN z), z += MLP(LN z).

    What the inputs bring, their own norm among it, is for the caller.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_look = nn.LayerNorm(width)
        self.look = CrossAttention(width, heads)
        self.norm_mix = nn.LayerNorm(width)
        self.mix = CrossAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), exact=True)

    def forward(
        self,
        z: Float[Tensor, "b n d"],
        keys: Keys | None,
        mask: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        if keys is not None:  # None: there are no inputs, which look at nothing alike
            z = z + self.look(self.norm_look(z), keys, mask)
        h = self.norm_mix(z)
        z = z + self.mix(h, self.mix.keys(h))
        return z + self.mlp(self.norm_mlp(z))


class Answer(nn.Module):
    """Queries look at the latents: attention(q, z), or q + that and then an MLP (`residual`).

    Without the residual an answer holds of its query nothing but where it looked.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.look = CrossAttention(width, heads)
        if residual:
            self.norm_q, self.norm_z = nn.LayerNorm(width), nn.LayerNorm(width)
            self.norm_mlp = nn.LayerNorm(width)
            self.mlp = MLP(width, int(width * mlp_ratio), exact=True)

    def forward(
        self, q: Float[Tensor, "b k d"], z: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b k d"]:
        if not self.residual:
            return self.look(q, self.look.keys(z))
        q = q + self.look(self.norm_q(q), self.look.keys(self.norm_z(z)))
        return q + self.mlp(self.norm_mlp(q))
