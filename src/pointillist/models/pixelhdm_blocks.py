"""The two kinds of blocks of PixelHDM (`models/pixelhdm.py`): of text and patches, and of pixels.

Both stand between two norms, before and after each branch, and add its answer times 1/sqrt(k L), so
that the sum over L blocks keeps its size however deep the network is.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.fused import Fused
from pointillist.layers.gain import gain
from pointillist.layers.grouped_attention import GroupedAttention
from pointillist.layers.mlp import SwiGLU
from pointillist.layers.mrope import Rotations
from pointillist.layers.norm import RMSNorm, modulated_norm
from pointillist.models.pixel_path import Modulation, Pixels, Tokens, again, plainly

PixelModulation = Literal["pixel", "patch", "factorised"]


def strength_of(depth: int, k: float) -> float:
    """1/sqrt(k L), what a branch of one of L blocks is multiplied by; 1 where k is 0."""
    return (k * depth) ** -0.5 if k else 1.0


class PatchBlock(nn.Module):
    """x += s gate1 post1(attention(norm1(x) (1 + scale1) + shift1)), then the same of a SwiGLU.

    Shift, scale and gate are linear in c, which knows time and, without captions, the label.
    """

    def __init__(
        self, width: int, attention: GroupedAttention, hidden: int, strength: float
    ) -> None:
        super().__init__()
        self.strength = strength
        self.norm1 = RMSNorm(width)
        self.attention = attention
        self.post1 = RMSNorm(width)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden, bias=False)
        self.post2 = RMSNorm(width)
        self.modulation = Fused(width, 6 * width, parts=6)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        c: Float[Tensor, "b d"],
        rotation: Rotations,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        h = self.attention(modulated_norm(self.norm1, x, shift1, scale1), rotation, mask)
        x = torch.addcmul(x, gate1.unsqueeze(1), self.post1(h), value=self.strength)
        h = self.mlp(modulated_norm(self.norm2, x, shift2, scale2))
        return torch.addcmul(x, gate2.unsqueeze(1), self.post2(h), value=self.strength)


class Steering(nn.Module):
    """Shift and scale of what a pixel block asks, then gate, shift, scale, gate of what it answers:
    one linear layer of a patch's token, for every cell (PixelDiT) or for the patch (`cells` 1).
    """

    def __init__(self, width: int, pixel_width: int, cells: int) -> None:
        super().__init__()
        self.enter = Modulation(width, pixel_width, cells, 2)
        self.leave = Modulation(width, pixel_width, cells, 4)

    def initialise(self, gain: float, gate: float) -> None:
        """Weights of Xavier's size times `gain`; gates start at `gate`."""
        for made in (self.enter, self.leave):
            nn.init.xavier_uniform_(made.linear.weight, gain)
            nn.init.zeros_(made.linear.bias)
        start_gates(self.leave.linear, (0, 3), gate)

    def ask(self, s: Tokens) -> tuple[Tensor, ...]:
        return self.enter(s, None)

    def answer(self, s: Tokens) -> tuple[Tensor, ...]:
        return self.leave(s, None)


class FactorisedSteering(nn.Module):
    """The published form: D -> p^2 e, SiLU, then one layer e -> 6 e that all cells share.

    A sixth of the weights, and of low rank: a cell has e numbers of its own, whatever is made of
    them.
    """

    def __init__(self, width: int, pixel_width: int, cells: int) -> None:
        super().__init__()
        self.shape = (cells, pixel_width)
        self.expand = nn.Linear(width, cells * pixel_width, bias=False)
        self.enter = Fused(pixel_width, 2 * pixel_width, parts=2)
        self.leave = Fused(pixel_width, 4 * pixel_width, parts=4)

    def initialise(self, gain: float, gate: float) -> None:
        """As `Steering`, but for `expand`, without which nothing could be learnt."""
        nn.init.xavier_uniform_(self.expand.weight)
        for made in (self.enter, self.leave):
            nn.init.xavier_uniform_(made.weight, gain)
            nn.init.zeros_(made.bias)
        start_gates(self.leave, (0, 3), gate)

    def ask(self, s: Tokens) -> tuple[Tensor, ...]:
        return self.enter(self._cells(s)).chunk(2, -1)

    def answer(self, s: Tokens) -> tuple[Tensor, ...]:
        return self.leave(self._cells(s)).chunk(4, -1)

    def _cells(self, s: Tokens) -> Pixels:
        return F.silu(self.expand(s)).unflatten(-1, self.shape)


def start_gates(layer: Fused, gates: tuple[int, ...], value: float) -> None:
    """Set the biases of some of the layer's parts."""
    with torch.no_grad():
        parts = layer.bias.view(layer.parts, -1)
        for i in gates:
            parts[i] = value


class HDMPixelBlock(nn.Module):
    """x += s gate1 spread(attention(compact(modulate(norm(x))))), then x += s gate2 SwiGLU(...).

    All cells of a patch are compacted into one token, so L patches of p^2 cells cost L^2 pairs of
    attention and not (L p^2)^2. As published there is a norm before and after the attention, and
    none behind the SwiGLU.
    """

    def __init__(
        self,
        width: int,
        pixel_width: int,
        cells: int,
        attention: GroupedAttention,
        hidden: int,
        modulation: PixelModulation,
        strength: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.strength, self.recompute = strength, recompute
        make = FactorisedSteering if modulation == "factorised" else Steering
        self.steering = make(width, pixel_width, 1 if modulation == "patch" else cells)
        self.norm1 = RMSNorm(pixel_width)
        self.compact = nn.Linear(cells * pixel_width, width, bias=False)
        self.pre = RMSNorm(width)
        self.attention = attention
        self.post = RMSNorm(width)
        self.spread = nn.Linear(width, cells * pixel_width, bias=False)
        self.norm2 = RMSNorm(pixel_width)
        self.mlp = SwiGLU(pixel_width, hidden, bias=False)

    def forward(self, x: Pixels, s: Tokens, rotation: Rotations) -> Pixels:
        call = again if self.recompute else plainly
        h = self.attention(call(self._question, x, s), rotation)
        return call(self._answer, x, h, s)

    def _question(self, x: Pixels, s: Tokens) -> Tokens:
        shift, scale = self.steering.ask(s)
        h = torch.addcmul(shift, self.norm1(x), gain(scale))
        return self.pre(self.compact(h.flatten(2)))

    def _answer(self, x: Pixels, h: Tokens, s: Tokens) -> Pixels:
        h = self.spread(self.post(h)).reshape(x.shape)
        gate1, shift, scale, gate2 = self.steering.answer(s)
        x = torch.addcmul(x, gate1, h, value=self.strength)
        h = self.mlp(torch.addcmul(shift, self.norm2(x), gain(scale)))
        return torch.addcmul(x, gate2, h, value=self.strength)
