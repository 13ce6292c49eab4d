"""A small convolutional U-Net on grids of one to three axes (Ronneberger et al., 1505.04597).

Means of 2-cell boxes on the way down, linear interpolation on the way up, where the finer stage
joins; GroupNorm (1803.08494) and SiLU behind every convolution. Sizes need not be multiples of
anything: a stage is as large as the one above halves to, rounded up.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class UNet(nn.Module):
    """`b inside *space` to `b widths[0] *space`: features as fine as what comes in.

    `depths[i]` convolutions on the way down at stage i, which has `widths[i]` channels, and as many
    on the way up at all but the last.
    """

    def __init__(
        self, axes: int, inside: int, widths: tuple[int, ...], depths: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.axes = axes
        into = (inside, *widths[:-1])
        self.down = nn.ModuleList(
            _stage(axes, *of) for of in zip(into, widths, depths, strict=True)
        )
        rising = list(zip(pairwise(widths), depths[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(
            _stage(axes, fine + coarse, fine, depth) for (fine, coarse), depth in rising
        )

    def forward(self, x: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *space"]:
        finer: list[Tensor] = []
        for stage in self.down:
            if finer:  # at an odd edge the last box holds one cell, and its mean is that cell
                box = tuple(min(2, n) for n in x.shape[2:])
                x = MEANS[self.axes](x, box, ceil_mode=True, count_include_pad=False)
            x = stage(x)
            finer.append(x)
        for stage, joined in zip(self.up, finer[-2::-1], strict=True):
            size = joined.shape[2:]
            x = F.interpolate(x, size=size, mode=LINEAR[self.axes], align_corners=False)
            x = stage(torch.cat((x, joined), 1))
        return x


def _stage(axes: int, inside: int, outside: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        # Biases, which a norm takes away but for what differs in a group: a map of zeros, where
        # nothing is known, would have no variance there, and a gradient of 1e15 behind ten norms.
        layers += [
            CONVOLUTIONS[axes](outside if i else inside, outside, 3, padding=1),
            nn.GroupNorm(GROUPS, outside), nn.SiLU(),
        ]  # fmt: skip
    return nn.Sequential(*layers)
