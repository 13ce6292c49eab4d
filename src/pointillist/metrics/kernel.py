"""Kernel distance of two sets of features: squared maximum mean discrepancy, unbiased.

With k(x, y) = (x . y / d + 1)^3, over all pairs of different samples,

    mean k(a, a') + mean k(b, b') - 2 mean k(a, b)

Gretton et al., "A Kernel Two-Sample Test" (JMLR 2012), Eq. 3; on Inception features it is the KID
of Binkowski et al., "Demystifying MMD GANs" (1801.01401). Unbiased at every n, so it may be below
zero, and sets of different numbers compare.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.draws import permutation
from pointillist.metrics.interval import Score, counts, percentiles
from pointillist.metrics.moments import Rows, as_features, same_width
from pointillist.types import InputError

LEAST = 10  # pictures that an interval takes
TILE = 1024  # pairs are met in squares of this side, so memory does not grow with their number
Picks = Iterable[tuple[Int[Tensor, " _r"], Int[Tensor, " _r"]]]


def kernel_distance(
    a: Rows,
    b: Rows,
    *,
    subset_size: int | None = None,
    subsets: int = 100,
    seed: int = 0,
    picks: Picks | None = None,
) -> float:
    """The distance from all pairs, or its mean over subsets.

    All pairs have the least variance. With `subset_size`, `subsets` draws of so many from each set
    are averaged, as published figures do (100 of 1,000). `picks` names the rows of every subset
    itself, to follow another program's draws.
    """
    if subset_size is None and picks is None:
        x, y = pair(a, b)
        weights = torch.ones(1, x.shape[0]), torch.ones(1, y.shape[0])
        return float(discrepancies(x, y, *(w.double() for w in weights)))
    return float(
        subset_distances(a, b, subset_size=subset_size or 0, subsets=subsets, seed=seed,
                         picks=picks).mean()
    )  # fmt: skip


def subset_distances(
    a: Rows,
    b: Rows,
    *,
    subset_size: int = 1000,
    subsets: int = 100,
    seed: int = 0,
    picks: Picks | None = None,
) -> Float[Tensor, " r"]:
    """One distance a subset; published figures give their mean and population deviation."""
    x, y = pair(a, b)
    if picks is None:
        n = min(x.shape[0], y.shape[0])
        if not 2 <= subset_size <= n:
            raise InputError(f"subset_size {subset_size} is not in 2 to {n}, the pictures of the "
                             f"smaller set; choose one that is")  # fmt: skip
        if subsets < 1:
            raise InputError(f"subsets {subsets} is below 1; published figures take 100")
        picks = drawn(x.shape[0], y.shape[0], subset_size, subsets, seed)
    found = []
    for i, j in picks:
        one = torch.ones(1, len(i), dtype=torch.float64), torch.ones(1, len(j), dtype=torch.float64)
        found.append(discrepancies(x[i], y[j], *one))
    if not found:
        raise InputError("picks names no subset; give one pair of row numbers or more")
    return torch.cat(found)


def drawn(n: int, m: int, size: int, subsets: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of every subset, without replacement; a subset depends on its number and the seed."""
    for number in range(subsets):
        yield (permutation(seed, number, "kernel distance a", n)[:size],
               permutation(seed, number, "kernel distance b", m)[:size])  # fmt: skip


def kernel_score(
    a: Rows,
    b: Rows,
    *, level: float = 0.95, replicates: int = 500, seed: int = 0,
) -> Score:  # fmt: skip
    """The distance from all pairs and its percentile bootstrap over the samples of both sets.

    A sample drawn twice is no pair with itself: equal rows are left out as they are in the value,
    so the replicates are centred on it. Sets of fewer than 10 have no interval worth the name.
    """
    x, y = pair(a, b)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < LEAST:
        raise InputError(f"the kernel distance of {n} and {m} pictures has no interval; give "
                         f"{LEAST} or more of each")  # fmt: skip
    first, second = torch.ones(1, n).double(), torch.ones(1, m).double()
    found = discrepancies(
        x, y,
        torch.cat((first, counts(n, replicates, seed))),
        torch.cat((second, counts(m, replicates, seed + 1))),
    )  # fmt: skip
    return Score(float(found[0]), *percentiles(found[1:], level), n)


def pair(a: Rows, b: Rows) -> tuple[Tensor, Tensor]:
    x, y = as_features(a, "a"), as_features(b, "b")
    same_width(x.shape[1], y.shape[1])
    return x, y


def discrepancies(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    of_x: Float[Tensor, "r n"],
    of_y: Float[Tensor, "r m"],
) -> Float[Tensor, " r"]:
    """The distance once for every row of weights; weight 1 everywhere is the plain one."""

    def within(z: Tensor, w: Tensor) -> Tensor:
        own = ((z.square().sum(1) / z.shape[1] + 1) ** 3 * w.square()).sum(1)
        return (weighted(z, z, w, w, True) - own) / (w.sum(1).square() - w.square().sum(1))

    across = weighted(x, y, of_x, of_y) / (of_x.sum(1) * of_y.sum(1))
    return within(x, of_x) + within(y, of_y) - 2 * across


def weighted(
    x: Tensor, y: Tensor, of_x: Tensor, of_y: Tensor, same: bool = False
) -> Float[Tensor, " r"]:
    """Sum over all pairs of weight times kernel times weight.

    Where both are the `same` set, squares above the diagonal stand for those below it too.
    """
    total = torch.zeros(of_x.shape[0], dtype=torch.float64)
    for i in range(0, x.shape[0], TILE):
        for j in range(i if same else 0, y.shape[0], TILE):
            kernel = (x[i : i + TILE] @ y[j : j + TILE].T / x.shape[1] + 1) ** 3
            found = ((of_x[:, i : i + TILE] @ kernel) * of_y[:, j : j + TILE]).sum(1)
            total += 2 * found if same and j > i else found
    return total
