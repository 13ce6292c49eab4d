"""What is known beforehand, put onto the grid that is asked for."""

import torch
from torch import Tensor

from pointillist.layers.observations import to_grid
from pointillist.types import Given, InputError


def on_grid(
    known: Given, count: int, channels: int, size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """(seen, mask), `count c *space` and `count 1 *space`, of gridded or scattered knowledge.

    One row is taken for all pictures. NaN means "not known". InputError where rows, channels or
    grid do not fit, or a point lies outside the picture.
    """
    if known.seen is not None and known.mask is not None:
        seen, mask = known.seen.float(), known.mask
        if tuple(seen.shape[2:]) != size or tuple(mask.shape[2:]) != size:
            raise InputError(
                f"hints lie on {'x'.join(map(str, seen.shape[2:]))} pixels, the pictures have "
                f"{'x'.join(map(str, size))}; give them on the same grid, or set the size"
            )
        mask = mask.expand_as(seen) & seen.isfinite()
    elif known.at is not None and known.value is not None:
        at, value = known.at, known.value.float()
        valid = torch.ones_like(value[:, :1], dtype=torch.bool) if known.valid is None \
            else known.valid  # fmt: skip
        valid = valid & value.isfinite()
        outside = ((at < -1) | (at > 1) | at.isnan()).any(-1)
        if (outside & valid.any(1)).any():
            row, point = (outside & valid.any(1)).nonzero()[0].tolist()
            raise InputError(
                f"hint {point} of row {row} lies at {at[row, point].tolist()}, outside of the "
                f"picture; coordinates run from -1 to 1"
            )
        seen, mask = to_grid(at, value, valid, size)
    else:
        raise InputError("hints are given by seen and mask, or by at and value; one of them lacks")
    if seen.shape[1] != channels:
        raise InputError(f"hints have {seen.shape[1]} channels, the pictures {channels}")
    if seen.shape[0] not in (1, count):
        raise InputError(f"hints are given for {seen.shape[0]} pictures, {count} are asked for; "
                         f"give one row for all, or one for each")  # fmt: skip
    every = mask.all(1, keepdim=True)
    if (every != mask).any():
        raise InputError("a hint gives some channels of a pixel only; give all of them")
    seen = torch.where(every, seen, 0)
    return seen.expand(count, *seen.shape[1:]), every.expand(count, *every.shape[1:])
