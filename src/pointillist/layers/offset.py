"""Pictures taken beside the centres of their cells."""

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.types import State


def moved(x: State, offsets: Float[Tensor, "s e"]) -> State:
    """The picture taken beside its cells' centres, by Catmull and Rom's cubic along each axis.

    `offsets` are those of the rows, columns and so on of a patch of `e` cells, in cells; they come
    again in every patch. Beyond the rim the outermost cells go on.
    """
    for axis, part in enumerate(offsets, start=2):
        n = x.shape[axis]
        place = torch.arange(n, device=x.device) + part.to(x.dtype).repeat(n // part.shape[0])
        low = place.floor()
        f = (place - low)[:, None]
        taps = torch.cat((
            ((2 - f) * f - 1) * f / 2, ((3 * f - 5) * f * f + 2) / 2,
            ((4 - 3 * f) * f + 1) * f / 2, (f - 1) * f * f / 2,
        ), 1)  # fmt: skip
        cells = (low.long()[:, None] + torch.arange(-1, 3, device=x.device)).clamp(0, n - 1)
        weights = x.new_zeros(n, n).scatter_add_(1, cells, taps)
        x = torch.movedim(torch.movedim(x, axis, -1) @ weights.T, -1, axis)
    return x


def mesh(offsets: Float[Tensor, "s e"]) -> Float[Tensor, "m s"]:
    """How far each of the m = e^s cells of a patch is moved, row-major."""
    return torch.stack(torch.meshgrid(*offsets, indexing="ij"), -1).flatten(0, -2)
