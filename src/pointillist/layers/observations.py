"""Observations from one form into the other: gridded (seen, mask), scattered (at, value)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointillist.types import InputError


def centres(size: tuple[int, ...]) -> Float[Tensor, "k s"]:
    """Cell centres of a grid, row-major, in [-1, 1] along each axis: ((i + .5)/n) 2 - 1."""
    ticks = [(torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1 for n in size]
    return torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1).flatten(0, -2).float()


def cell_of(at: Float[Tensor, "b m s"], size: tuple[int, ...]) -> Int[Tensor, "b m"]:
    """Row-major number of the cell that holds each point; points on the rim belong to the last."""
    number = torch.zeros(at.shape[:-1], dtype=torch.long, device=at.device)
    for axis, n in enumerate(size):
        cell = ((at[..., axis].double() + 1) / 2 * n).floor().long().clamp(0, n - 1)
        number = number * n + cell
    return number


def to_grid(
    at: Float[Tensor, "b m s"],
    value: Float[Tensor, "b c m"],
    valid: Bool[Tensor, "b _ m"],
    size: tuple[int, ...],
) -> tuple[Float[Tensor, "b c *space"], Bool[Tensor, "b c *space"]]:
    """Mean of the valid points in each cell, and where there are any; 0 elsewhere."""
    b, c, m = value.shape
    where = cell_of(at, size)[:, None].expand(b, c, m)
    use = valid.expand(b, c, m)
    shape = (b, c, math.prod(size))
    total = value.new_zeros(shape).scatter_add_(2, where, value.masked_fill(~use, 0))
    count = value.new_zeros(shape).scatter_add_(2, where, use.to(value.dtype))
    seen = total / count.clamp(min=1)
    return seen.view(b, c, *size), (count > 0).view(b, c, *size)


def to_points(
    seen: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b _ *space"]
) -> tuple[Float[Tensor, "b m s"], Float[Tensor, "b c m"], Bool[Tensor, "b c m"]]:
    """The observed cells as points at their centres, as many as the fullest sample has."""
    b, c, size = seen.shape[0], seen.shape[1], tuple(seen.shape[2:])
    use = mask.expand_as(seen).flatten(2)
    any_channel = use.any(1)
    m = max(int(any_channel.sum(1).max()), 1)
    # A stable sort puts observed cells first, in the order of the grid.
    order = torch.argsort((~any_channel).to(torch.int8), dim=1, stable=True)[:, :m]
    at = centres(size).to(seen.device)[order]
    take = order[:, None].expand(b, c, m)
    valid = use.gather(2, take)
    return at, seen.flatten(2).gather(2, take).masked_fill(~valid, 0), valid


def whole_pixels(mask: Bool[Tensor, "b c *space"]) -> Bool[Tensor, "b 1 *space"]:
    """Where all channels are known; InputError where some are and others are not."""
    if mask.shape[1] == 1:
        return mask
    known = mask.all(1, keepdim=True)
    if (known != mask).any():
        raise InputError("a hint gives some channels of a pixel only; give all of them")
    return known


def hint_channels(
    seen: Float[Tensor, "b c *space"] | None,
    mask: Bool[Tensor, "b _ *space"] | None,
    channels: int,
    size: tuple[int, ...],
    device: torch.device,
) -> Float[Tensor, "b d *space"]:
    """Known values and, as a last channel, where they are known (1) and where not (0).

    Nothing seen is zero everywhere, mask too; a cell known to be black, or mid-grey 0, has mask 1.
    InputError where a cell is known in some of its channels only, or the grids differ.
    """
    if seen is None:
        return torch.zeros(1, channels + 1, *size, device=device)
    if mask is None:
        mask = seen.isfinite()
    if seen.shape[1] != channels or mask.dtype != torch.bool:
        raise InputError(
            f"hints have {seen.shape[1]} channels and a mask of {mask.dtype}; the picture has "
            f"{channels} channels, and a mask is true or false"
        )
    if tuple(seen.shape[2:]) != size or tuple(mask.shape[2:]) != size:
        raise InputError(
            f"hints lie on a grid of {'x'.join(map(str, seen.shape[2:]))}, the picture has "
            f"{'x'.join(map(str, size))}; give them on the picture's own grid"
        )
    known = whole_pixels(mask)
    return torch.cat((torch.where(known, seen, 0), known.to(seen.dtype)), 1)
