"""Grids to tokens and back, for one, two or three axes."""

from einops import rearrange
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


def _words(axes: int) -> tuple[str, str, str]:
    """For two axes "(h p) (w q)", "h w" and "p q": a grid of patches, its cells, one patch."""
    cells, within = "fhw"[-axes:], "rpq"[-axes:]
    grid = " ".join(f"({n} {p})" for n, p in zip(cells, within, strict=True))
    return grid, " ".join(cells), " ".join(within)


def patchify(x: Float[Tensor, "b c *space"], p: int) -> Float[Tensor, "b n d"]:
    """Tokens in row-major order; within a token the channel is slowest: d = (c, p, ..., p)."""
    axes = x.dim() - 2
    patch_grid(tuple(x.shape[2:]), p)
    grid, cells, within = _words(axes)
    sizes = dict.fromkeys(within.split(), p)
    return rearrange(x, f"b c {grid} -> b ({cells}) (c {within})", **sizes)


def unpatchify(
    tokens: Float[Tensor, "b n d"], p: int, size: tuple[int, ...]
) -> Float[Tensor, "b o *space"]:
    """The grid behind tokens with the channel fastest, d = (p, ..., p, o), as published heads."""
    grid, cells, within = _words(len(size))
    sizes = dict(zip(cells.split(), patch_grid(size, p), strict=True))
    sizes |= dict.fromkeys(within.split(), p)
    return rearrange(tokens, f"b ({cells}) ({within} o) -> b o {grid}", **sizes)
