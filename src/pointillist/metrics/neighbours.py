"""Precision and recall of a generated set, on manifolds of nearest neighbours.

Every sample of a set is the centre of a ball that reaches to its k-th neighbour in the set.
Precision is the share of generated samples inside of a real one's ball, recall that of real samples
inside of a generated one's. Kynkaanniemi et al., "Improved Precision and Recall Metric for
Assessing Generative Models" (1904.06991), Eq. 1 and 2.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.metrics.moments import Rows, as_features, same_width
from pointillist.types import InputError

TILE = 1024  # distances are met in squares of this side, so memory does not grow with n^2


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1."""

    precision: float
    recall: float


def precision_recall(generated: Rows, real: Rows, k: int = 3) -> PrecisionRecall:
    """Both shares from features; they grow with k and depend on both numbers of pictures."""
    x, y = as_features(generated, "generated"), as_features(real, "real")
    same_width(x.shape[1], y.shape[1])
    for name, n in (("generated", x.shape[0]), ("real", y.shape[0])):
        if not 1 <= k < n:
            raise InputError(f"k is {k}, but {name} has {n} pictures; a k-th neighbour needs more "
                             f"than k of them, and k is 1 or more")  # fmt: skip
    # The origin cancels in a distance; near the data it costs the fewest digits.
    origin = y.mean(0)
    x, y = x - origin, y - origin
    inside_real = covered(x, y, radii(y, k))
    inside_generated = covered(y, x, radii(x, k))
    return PrecisionRecall(
        float(inside_real.double().mean()), float(inside_generated.double().mean())
    )


def squares(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Squared distances; what rounding cannot tell from 0 is 0, so a copy lies in every ball."""
    sizes = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    found = sizes - 2 * x @ y.T
    return torch.where(found > 1e-12 * sizes, found, 0.0)


def radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """The squared distance of every sample to its k-th neighbour, itself left out."""
    rows = []
    for i in range(0, x.shape[0], TILE):
        nearest = torch.empty(min(TILE, x.shape[0] - i), 0, dtype=x.dtype)
        for j in range(0, x.shape[0], TILE):
            candidates = torch.cat((nearest, squares(x[i : i + TILE], x[j : j + TILE])), 1)
            nearest = candidates.topk(min(k + 1, candidates.shape[1]), 1, largest=False).values
        rows.append(nearest[:, k])  # the nearest of all is the sample itself
    return torch.cat(rows)


def covered(
    x: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], reach: Float[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Whether each x lies in any of the balls."""
    rows = []
    for i in range(0, x.shape[0], TILE):
        part = x[i : i + TILE]
        inside = torch.zeros(part.shape[0], dtype=torch.bool)
        for j in range(0, centres.shape[0], TILE):
            inside |= (squares(part, centres[j : j + TILE]) <= reach[j : j + TILE]).any(1)
        rows.append(inside)
    return torch.cat(rows)
