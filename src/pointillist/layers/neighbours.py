"""The nearest points of every query: a tree on the CPU, tiled exact distances on a GPU."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from pointillist.types import InputError

TILE = 1 << 24  # pairs of a query and a point that are held at once


class Neighbours(NamedTuple):
    """The nearest first; `index` is 0 where `valid` is false.

    `edge` is the radius, or the distance of the first point that was left out if that is nearer:
    a weight that fades to 0 there is continuous as the set of neighbours changes.
    """

    index: Int[Tensor, "b k n"]  # type: ignore[assignment]
    valid: Bool[Tensor, "b k n"]
    edge: Float[Tensor, "b k"]


def neighbours(
    query: Float[Tensor, "b k s"],
    points: Float[Tensor, "b m s"],
    valid: Bool[Tensor, "b 1 m"],
    count: int,
    radius: float,
    skip_self: bool = False,
    metric: tuple[float, ...] = (),
) -> Neighbours:
    """Up to `count` valid points nearer than the edge; `metric` multiplies coordinates before.

    With `skip_self` the queries are the points, and none is its own neighbour.
    """
    if count < 1 or not radius > 0:
        raise InputError(f"neighbours are {count} in radius {radius}; both must be above 0")
    if metric and len(metric) != query.shape[-1]:
        raise InputError(
            f"metric has {len(metric)} numbers for {query.shape[-1]} axes; give one for each axis"
        )
    query, points = query.detach().double(), points.detach().double()
    if metric:
        factors = query.new_tensor(metric)
        query, points = query * factors, points * factors
    wanted = count + 1 + skip_self
    search = by_tree if query.device.type == "cpu" else by_tiles
    return select(*search(query, points, valid, wanted, radius), count, radius, skip_self)


def select(
    distance: Tensor, index: Tensor, count: int, radius: float, skip_self: bool
) -> Neighbours:
    """The first `count` of candidates in order, without the query itself."""
    if skip_self:
        own = torch.arange(index.shape[1], device=index.device)[:, None]
        distance = distance.masked_fill((index == own) & distance.isfinite(), torch.inf)
        distance, order = distance.sort(dim=-1, stable=True)
        index = index.gather(-1, order)
    edge = distance[..., count].clamp(max=radius)
    near = distance[..., :count] < edge[..., None]
    return Neighbours(index[..., :count].masked_fill(~near, 0), near, edge.float())


def by_tree(
    query: Tensor, points: Tensor, valid: Tensor, wanted: int, radius: float
) -> tuple[Tensor, Tensor]:
    """Distances (infinite where there is no point) and indices of the `wanted` nearest."""
    shape = (*query.shape[:2], wanted)
    distance, index = np.full(shape, np.inf), np.zeros(shape, dtype=np.int64)
    for b in range(shape[0]):
        kept = valid[b, 0].nonzero()[:, 0].numpy()
        if len(kept) == 0:
            continue
        tree = cKDTree(points[b].numpy()[kept])
        distance[b], found = tree.query(
            query[b].numpy(), k=wanted, distance_upper_bound=radius, workers=1
        )
        index[b] = np.append(kept, 0)[found]  # a missing neighbour has the index len(kept)
    return torch.from_numpy(distance), torch.from_numpy(index)


def by_tiles(
    query: Tensor, points: Tensor, valid: Tensor, wanted: int, radius: float
) -> tuple[Tensor, Tensor]:
    """The same from all distances, a tile of queries at a time."""
    shape = (*query.shape[:2], wanted)
    distance = query.new_full(shape, torch.inf)
    index = torch.zeros(shape, dtype=torch.int64, device=query.device)
    m = points.shape[1]
    if m == 0:
        return distance, index
    tile, k = max(1, TILE // m), min(wanted, m)
    for b in range(shape[0]):
        for start in range(0, shape[1], tile):
            part = slice(start, start + tile)
            square = query.new_zeros(query[b, part].shape[0], m)
            for axis in range(query.shape[-1]):
                square += (query[b, part, None, axis] - points[b, None, :, axis]) ** 2
            far = ~valid[b] | (square >= radius**2)
            near = square.masked_fill(far, torch.inf).topk(k, -1, largest=False)
            distance[b, part, :k], index[b, part, :k] = near.values.sqrt(), near.indices
    return distance, index
