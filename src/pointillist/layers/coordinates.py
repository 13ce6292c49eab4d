"""Codes of places: Fourier features of coordinates, as they are and learnt.

Frequencies are pi 2^k, k = 0, 1, ... (Mildenhall et al. 2003.08934, Eq. 4). Coordinates and
features stay in float32 whatever the autocast: at k = 15 one rounding error of a coordinate turns
a feature by 0.006, and bfloat16 knows no coordinate finer than 1/256.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Convention = Literal["centre", "corner", "unit"]


def place(
    at: Float[Tensor, "*b s"], size: tuple[int, ...], convention: Convention
) -> Float[Tensor, "*b s"]:
    """Places in [-1, 1], where cell i of n has its centre at ((i + .5)/n) 2 - 1, told otherwise.

    `centre` leaves them; `corner` puts the outermost cells' centres on -1 and 1, `unit` on 0 and 1.
    Places on a cell's centre get the float32 number that the formula of the cell's number gives.
    """
    if convention == "centre":
        return at.float()
    count = torch.tensor(size, device=at.device)
    cell = (at.double() + 1) / 2 * count - 0.5
    whole = cell.round()
    cell = torch.where((cell - whole).abs() < 1e-6 * count, whole, cell).float()
    unit = cell / (count - 1).clamp(min=1)
    return unit if convention == "unit" else unit * 2 - 1


def unaliased_bands(size: tuple[int, ...]) -> tuple[int, ...]:
    """Bands for each axis, so that a cell of n is at most a quarter of the shortest wave.

    log2(n/2) of them, rounded down, but at least one. Higher bands tell cells apart as a hash does:
    they say nothing about places between the cells of the training grid.
    """
    return tuple(max(1, math.floor(math.log2(n / 2))) for n in size)


def fourier(at: Float[Tensor, "*b s"], bands: tuple[int, ...]) -> Float[Tensor, "*b d"]:
    """sin(pi 2^k x) for every k, then the cosines, axis after axis; d = 2 sum(bands)."""
    found = []
    for x, count in zip(at.float().unbind(-1), bands, strict=True):
        frequency = 2.0 ** torch.arange(count, dtype=torch.float32, device=at.device) * math.pi
        phase = x[..., None] * frequency
        found += [phase.sin(), phase.cos()]
    return torch.cat(found, -1)


def in_float32(like: Tensor) -> torch.autocast:
    """Without autocast: in bfloat16 half of a thousand places along a curve are one number."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)


class FourierFeatures(nn.Module):
    """Linear of the Fourier features of a place."""

    def __init__(self, bands: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.bands = bands
        self.out = nn.Linear(2 * sum(bands), width)

    def forward(self, at: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        with in_float32(at):
            return self.out(fourier(at, self.bands))


class LearnableFourierMLP(nn.Module):
    """Linear, GELU, Linear of the Fourier features (in the manner of Li et al. 2106.02795).

    `hidden` 0 is the larger of the width and the number of features.
    """

    def __init__(self, bands: tuple[int, ...], width: int, hidden: int = 0) -> None:
        super().__init__()
        self.bands = bands
        features = 2 * sum(bands)
        hidden = hidden or max(width, features)
        self.up = nn.Linear(features, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, at: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        with in_float32(at):
            return self.down(F.gelu(self.up(fourier(at, self.bands))))
