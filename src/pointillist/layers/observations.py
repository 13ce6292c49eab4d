"""Observations from one form into the other: gridded (seen, mask), scattered (at, value)."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointillist.types import Given, InputError


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
    seen: Float[Tensor, "b c *space"],
    mask: Bool[Tensor, "b _ *space"],
    where: Float[Tensor, "b k s"] | None = None,
) -> tuple[Float[Tensor, "b m s"], Float[Tensor, "b c m"], Bool[Tensor, "b c m"]]:
    """The observed cells as points, as many as the fullest sample has.

    They lie at `where`, or at the cells' centres.
    """
    b, c, size = seen.shape[0], seen.shape[1], tuple(seen.shape[2:])
    use = mask.expand_as(seen).flatten(2)
    any_channel = use.any(1)
    m = max(int(any_channel.sum(1).max()), 1)
    # A stable sort puts observed cells first, in the order of the grid.
    order = torch.argsort((~any_channel).to(torch.int8), dim=1, stable=True)[:, :m]
    if where is None:
        at = centres(size).to(seen.device)[order]
    else:
        at = where.gather(1, order[:, :, None].expand(-1, -1, where.shape[2]))
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


def overlaps(there: int, here: int, device: torch.device | None = None) -> Float[Tensor, "n m"]:
    """How much of each of `there` cells of an axis lies in each of `here`; rows are those here."""
    ends = torch.arange(here + 1, dtype=torch.float64, device=device) / here
    theirs = torch.arange(there + 1, dtype=torch.float64, device=device) / there
    low = torch.maximum(ends[:-1, None], theirs[None, :-1])
    high = torch.minimum(ends[1:, None], theirs[None, 1:])
    return ((high - low).clamp(min=0) * there).float()


def regrid(
    seen: Float[Tensor, "b c *coarse"],
    density: Float[Tensor, "b 1 *coarse"],
    size: tuple[int, ...],
) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, "b 1 *space"]]:
    """Area means of what is known on the grid of `size`, and how much is known of each cell.

    A density of 1 is one observation for each cell. Of a finer grid it is the share of a cell that
    was observed; a coarser cell counts as one observation spread over the cells that it covers.
    """
    there = tuple(seen.shape[2:])
    if there == size:
        return seen, density
    total, count = seen * density, density
    for axis, (n, m) in enumerate(zip(there, size, strict=True), 2):
        weights = overlaps(n, m, seen.device)
        total = torch.movedim(torch.movedim(total, axis, -1) @ weights.T, -1, axis)
        count = torch.movedim(torch.movedim(count, axis, -1) @ weights.T, -1, axis)
    share = count * (math.prod(size) / math.prod(there))
    known = share > 1e-6
    return torch.where(known, total / count.clamp(min=1e-20), 0), torch.where(
        known, share * min(1.0, math.prod(there) / math.prod(size)), 0
    )


def grid_of(
    given: Given, channels: int, size: tuple[int, ...]
) -> tuple[Float[Tensor, "b c *space"], Float[Tensor, "b 1 *space"]] | None:
    """Everything observed on the grid of `size`, and its density; None where nothing is given.

    Where gridded and scattered observations tell of one cell, the grid's value counts. InputError
    where a cell is known in some of its channels only, or the grid has another aspect ratio.
    """
    found = None
    if given.at is not None:
        assert given.value is not None
        valid = given.valid
        if valid is None:
            valid = torch.ones_like(given.value[:, :1], dtype=torch.bool)
        seen, mask = to_grid(given.at, given.value, valid, size)
        known = mask[:, :1] if valid.shape[1] == 1 else whole_pixels(mask)
        found = torch.where(known, seen, 0), known.to(seen.dtype)
    if given.seen is None:
        return found
    seen, known = checked(given.seen, given.mask, channels, size)
    gridded = regrid(torch.where(known, seen, 0), known.to(seen.dtype), size)
    if found is None:
        return gridded
    held = gridded[1] > 0
    return torch.where(held, gridded[0], found[0]), torch.where(held, gridded[1], found[1])


def points_of(
    given: Given, channels: int
) -> tuple[Float[Tensor, "b m s"], Float[Tensor, "b c m"], Bool[Tensor, "b 1 m"]] | None:
    """Everything observed as points, gridded cells at their centres; None where nothing is given.

    Values are 0 where `valid` is false. InputError where a point is known in some of its channels.
    """
    found = []
    if given.at is not None:
        assert given.value is not None
        valid = given.valid
        if valid is None:
            valid = torch.ones_like(given.value[:, :1], dtype=torch.bool)
        known = whole_pixels(valid)
        found.append((given.at, given.value.masked_fill(~known, 0), known))
    if given.seen is not None:
        seen, mask = checked(given.seen, given.mask, channels, None)
        at, value, valid = to_points(torch.where(mask, seen, 0), mask)
        found.append((at, value, valid[:, :1]))
    if not found:
        return None
    parts = zip(*found, strict=True)
    return tuple(torch.cat(part, axis) for part, axis in zip(parts, (1, 2, 2), strict=True))  # type: ignore[return-value]


def checked(
    seen: Tensor, mask: Tensor | None, channels: int, size: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """Values and the mask of whole pixels; InputError where they do not fit a picture of `size`."""
    mask = seen.isfinite() if mask is None else mask
    if seen.shape[1] != channels or mask.dtype != torch.bool:
        raise InputError(
            f"hints have {seen.shape[1]} channels and a mask of {mask.dtype}; the picture has "
            f"{channels} channels, and a mask is true or false"
        )
    there = tuple(seen.shape[2:])
    skew = size is not None and (
        len(there) != len(size)
        or any(n * size[0] != there[0] * m for n, m in zip(there, size, strict=True))
    )
    if tuple(mask.shape[2:]) != there or skew:
        raise InputError(
            f"hints lie on a grid of {'x'.join(map(str, there))}, their mask on "
            f"{'x'.join(map(str, mask.shape[2:]))}, the picture has "
            f"{'x'.join(map(str, size or there))}; give them on the picture's own grid, or on one "
            f"of its aspect ratio"
        )
    return seen, whole_pixels(mask)


def hint_channels(
    given: Given, channels: int, size: tuple[int, ...], device: torch.device
) -> Float[Tensor, "b d *space"]:
    """Known values and, as a last channel, their density: 1 where a cell is known, 0 where not.

    Nothing given is zero everywhere, in one row; a cell known to be mid-grey 0 has density 1.
    """
    found = grid_of(given, channels, size)
    if found is None:
        return torch.zeros(1, channels + 1, *size, device=device)
    return torch.cat(found, 1)
