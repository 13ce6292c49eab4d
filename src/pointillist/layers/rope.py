"""Rotary position embedding along one, two or three axes (Su et al. 2104.09864)."""

import functools

import torch
from jaxtyping import Complex64, Float
from torch import Tensor
from torch.nn import functional as F

from pointillist.layers.embed import CPU, TABLES, positions

Rotation = Complex64[Tensor, "n half"]  # e^(i angle) for every token and pair of a head


@functools.lru_cache(TABLES)
def rope(
    grid: tuple[int, ...],
    trained: tuple[int, ...],
    head_width: int,
    theta: float = 1e4,
    fixed: int = 0,
    device: torch.device = CPU,
    span: float | tuple[float, ...] = 0.0,
) -> Rotation:
    """Tables for a grid of tokens, preceded by `fixed` tokens that are not turned.

    Each axis turns its own share of the head in adjacent pairs; frequencies theta^(-2k/share).
    With a `span` the tokens of an axis lie evenly on [0, span], both ends taken, however many they
    are (PixNerd and PixelDiT: 16); without, at the steps of the trained grid (`embed.positions`).
    Several spans are one for each axis.
    The table is kept and shared: do not write into it.
    """
    share = head_width // len(grid) // 2 * 2
    frequency = theta ** -(torch.arange(0, share, 2, dtype=torch.float64, device=CPU) / share)
    spans = span if isinstance(span, tuple) else (span,) * len(grid)
    places = [
        torch.linspace(0, far, n, dtype=torch.float64, device=CPU) if far else steps
        for far, n, steps in zip(spans, grid, positions(grid, trained), strict=True)
    ]
    mesh = torch.meshgrid(*places, indexing="ij")
    angle = torch.cat([place.flatten()[:, None] * frequency for place in mesh], -1)
    still = head_width // 2 - angle.shape[-1]
    angle = F.pad(angle, (0, still, fixed, 0))
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def rotate(
    x: Float[Tensor, "b h n e"], rotation: Complex64[Tensor, "*_ n half"]
) -> Float[Tensor, "b h n e"]:
    """Turn adjacent pairs, in float32: (a, b) -> (a cos - b sin, b cos + a sin)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)
