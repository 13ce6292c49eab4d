"""Sparse values spread over a grid: normalised convolution at several scales, coarse to fine.

Knutsson and Westin, "Normalized and Differential Convolution" (CVPR 1993): values v of certainty m,
looked at through a window G, are (G * m v) / (G * m). A narrow window keeps detail and leaves
holes, a wide one has neither. Here each window, from the widest to the narrowest, corrects what
those before it left at the observed places, as in the successive corrections of Barnes, "A
Technique for Maximizing Details in Numerical Weather Map Analysis" (1964).
"""

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.layers.embed import CPU, TABLES

# Standard deviations of the windows in cells; one that stands there again corrects again.
SCALES = (8.0, 4.0, 2.0, 1.4, 1.0, 1.0, 1.0, 0.7, 0.5)

# A correction counts in full where the density is far above this share of its scale.
RESERVE = 0.3


class Splat(NamedTuple):
    """A picture that is defined everywhere, and what its passes saw on the way.

    `filled` has the observed value where the density is 1. `features` are, for each different
    scale, the c channels of the fill behind its last pass and the trust in that pass, in [0, 1);
    then the fill, the observed values (0 where there are none) and the density.
    """

    filled: Float[Tensor, "b c *space"]
    features: Float[Tensor, "b f *space"]


def splat_channels(channels: int, scales: tuple[float, ...]) -> int:
    """How many channels the features of `splat` have."""
    return len(set(scales)) * (channels + 1) + 2 * channels + 1


def finer_scales(scales: tuple[float, ...], finer: float) -> tuple[float, ...]:
    """Windows for a grid that many times finer: wider ones first, which reach as far as before."""
    wider = tuple(scale * finer for scale in scales if scale * finer > scales[0])
    return (*wider, *scales)


@functools.lru_cache(TABLES)
def window(
    n: int, scale: float, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Float[Tensor, "n n"]:
    """A Gaussian of height 1 about every cell of an axis; nothing lies beyond its ends.

    The table is kept and shared: do not write into it.
    """
    place = torch.arange(n, dtype=torch.float64, device=CPU)
    return torch.exp(-0.5 * ((place[:, None] - place) / scale) ** 2).to(device, dtype)


def smooth(x: Float[Tensor, "b c *space"], scale: float) -> Float[Tensor, "b c *space"]:
    """The sum over all cells, each weighted by the window about the cell in question."""
    for axis in range(2, x.dim()):
        table = window(x.shape[axis], scale, x.dtype, x.device)
        x = (x.transpose(axis, -1) @ table).transpose(axis, -1)
    return x


def splat(
    seen: Float[Tensor, "b c *space"],
    density: Float[Tensor, "b 1 *space"],
    scales: tuple[float, ...] = SCALES,
) -> Splat:
    """Fill a grid from observed cells; density, in [0, 1], is how much of a cell was observed.

    Begins with the mean of what was observed (0 where nothing was), so `seen` may hold anything
    where the density is 0. In float32 or better, whatever the autocast.
    """
    device = "cpu" if seen.is_meta else seen.device.type
    with torch.autocast(device, enabled=False):
        if seen.dtype != torch.float64:
            seen, density = seen.float(), density.float()
        density = density.to(seen.dtype)
        seen = torch.where(density > 0, seen, 0)
        axes = tuple(range(2, seen.dim()))
        total = density.sum(axes, keepdim=True).clamp(min=1e-6)
        fill = ((density * seen).sum(axes, keepdim=True) / total).expand_as(seen)
        around = {scale: smooth(density, scale) for scale in dict.fromkeys(scales)}
        levels: dict[float, Tensor] = {}
        for scale in scales:
            signal = smooth(density * (seen - fill), scale)
            # signal / density, times the trust density / (density + reserve)
            fill = fill + signal / (around[scale] + RESERVE * scale)
            levels[scale] = fill
        filled = density * seen + (1 - density) * fill
        trust = [dense / (dense + RESERVE * scale) for scale, dense in around.items()]
        return Splat(filled, torch.cat((*levels.values(), *trust, filled, seen, density), 1))
