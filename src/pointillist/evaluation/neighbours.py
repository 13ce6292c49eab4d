"""The training pictures that generated ones come nearest to: is it memory, or invention?"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pointillist.data.loader import to_batch
from pointillist.data.source import Source
from pointillist.pictures import levels


class Nearest(NamedTuple):
    """For every picture its k nearest of the set, nearest first."""

    rows: Int[Tensor, "b k"]
    distance: Float[Tensor, "b k"]  # root of the mean square, in 8-bit levels
    pictures: UInt8[Tensor, "b k c h w"]
    searched: int  # how many of the set were looked at


@torch.no_grad()
def nearest(
    pictures: UInt8[Tensor, "b c h w"], source: Source, k: int = 3, limit: int = 50_000,
    portion: int = 1000,
) -> Nearest:  # fmt: skip
    """The nearest of the first `limit` pictures of a set, by distance of pixels.

    The pictures have the size of the set. A picture and its mirror image count as one, as training
    flips. Memory holds one portion of the set and k pictures for each that is asked.
    """
    asked = pictures.float().flatten(1)
    mirrored = pictures.flip(-1).float().flatten(1)
    b, n = asked.shape[0], min(limit, len(source))
    best = torch.full((b, 0), torch.inf)
    index = torch.zeros((b, 0), dtype=torch.long)
    for first in range(0, n, portion):
        rows = real_pictures(source, range(first, min(first + portion, n)))
        theirs = rows.float().flatten(1)
        # Exactly: by matrix products the distance of a copy would not be 0.
        distance = partial(torch.cdist, x2=theirs, compute_mode="donot_use_mm_for_euclid_dist")
        away = torch.minimum(distance(asked), distance(mirrored))
        number = torch.arange(first, first + theirs.shape[0]).expand(b, -1)
        both, numbers = torch.cat((best, away), 1), torch.cat((index, number), 1)
        best, order = both.topk(min(k, both.shape[1]), largest=False)
        index = numbers.gather(1, order)
    found = [real_pictures(source, row.tolist()) for row in index]
    return Nearest(index, best / asked.shape[1] ** 0.5, torch.stack(found), n)


def real_pictures(source: Source, rows: Sequence[int]) -> UInt8[Tensor, "b c h w"]:
    """Pictures of a set as 8-bit levels, whatever they are stored as."""
    return levels(to_batch(source.rows(rows), torch.as_tensor(rows), source.spec).x)
