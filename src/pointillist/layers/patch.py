"""Grids to tokens and back, for one, two or three axes."""

import math

from jaxtyping import Float
from torch import Tensor

from pointillist.types import InputError


def patch_grid(size: tuple[int, ...], p: int) -> tuple[int, ...]:
    """Patches along each axis; raises InputError where the size is no multiple of the patch."""
    if any(n % p or n < p for n in size):
        shown = "x".join(map(str, size))
        near = "x".join(str(max(1, round(n / p)) * p) for n in size)
        raise InputError(f"size {shown} is no multiple of the patch size {p}; {near} would do")
    return tuple(n // p for n in size)


def patchify(x: Float[Tensor, "b c *space"], p: int) -> Float[Tensor, "b n d"]:
    """Tokens in row-major order; within a token the channel is slowest: d = (c, p, ..., p)."""
    grid = patch_grid(tuple(x.shape[2:]), p)
    s, (b, c) = len(grid), x.shape[:2]
    x = x.reshape(b, c, *(n for g in grid for n in (g, p)))
    cells, within = range(2, 2 + 2 * s, 2), range(3, 3 + 2 * s, 2)
    return x.permute(0, *cells, 1, *within).reshape(b, math.prod(grid), c * p**s)


def unpatchify(
    tokens: Float[Tensor, "b n d"], p: int, size: tuple[int, ...]
) -> Float[Tensor, "b o *space"]:
    """The grid behind tokens with the channel fastest, d = (p, ..., p, o), as published heads."""
    grid = patch_grid(size, p)
    s, b = len(grid), tokens.shape[0]
    o = tokens.shape[-1] // p**s
    x = tokens.reshape(b, *grid, *[p] * s, o)
    order = [axis for i in range(s) for axis in (1 + i, 1 + s + i)]
    return x.permute(0, 1 + 2 * s, *order).reshape(b, o, *size)
