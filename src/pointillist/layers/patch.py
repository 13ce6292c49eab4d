"""Grids to tokens and back, for one, two or three axes."""

import math

from einops import rearrange
from jaxtyping import Float, Shaped
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


def on_grid(tokens: Float[Tensor, "b m d"], grid: tuple[int, ...]) -> Float[Tensor, "b d *grid"]:
    """The last tokens of a sequence, which are those of the patches, where they lie."""
    return tokens[:, -math.prod(grid) :].mT.unflatten(2, grid)


def pixels(x: Shaped[Tensor, "b c *space"], p: int, edge: int) -> Shaped[Tensor, "b n m c"]:
    """The m = p^axes cells of every patch one by one; a patch is read in blocks of `edge` cells.

    Blocks and the cells of a block are row-major, so the cells of one block lie together.
    """
    axes = x.dim() - 2
    patch_grid(tuple(x.shape[2:]), p)
    grid, cells, blocks, within = _nested(axes)
    sizes = dict.fromkeys(blocks.split(), p // edge) | dict.fromkeys(within.split(), edge)
    return rearrange(x, f"b c {grid} -> b ({cells}) ({blocks} {within}) c", **sizes)


def unpixels(
    x: Float[Tensor, "b n m c"], p: int, edge: int, size: tuple[int, ...]
) -> Float[Tensor, "b c *space"]:
    """The grid behind `pixels`."""
    grid, cells, blocks, within = _nested(len(size))
    sizes = dict(zip(cells.split(), patch_grid(size, p), strict=True))
    sizes |= dict.fromkeys(blocks.split(), p // edge) | dict.fromkeys(within.split(), edge)
    return rearrange(x, f"b ({cells}) ({blocks} {within}) c -> b c {grid}", **sizes)


def _nested(axes: int) -> tuple[str, str, str, str]:
    """For two axes "(h j p) (w k q)", "h w", "j k" and "p q": patches, their blocks, cells."""
    cells, blocks, within = "fhw"[-axes:], "ijk"[-axes:], "rpq"[-axes:]
    grid = " ".join(f"({n} {b} {p})" for n, b, p in zip(cells, blocks, within, strict=True))
    return grid, " ".join(cells), " ".join(blocks), " ".join(within)
