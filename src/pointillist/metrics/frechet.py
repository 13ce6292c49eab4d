"""Frechet distance of two sets of features, each taken for a Gaussian.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

Dowson, Landau, "The Frechet distance between multivariate normal distributions" (1982); on
Inception features it is the FID of Heusel et al., "GANs Trained by a Two Time-Scale Update Rule"
(1706.08500), Eq. 6. C_a C_b has the eigenvalues of the symmetric F^T C_b F with F F^T = C_a, so the
trace of its root needs no root of an unsymmetric matrix, which loses half of the digits and turns
complex where a covariance lacks rank.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.metrics.interval import Score, percentiles, resamples
from pointillist.metrics.moments import Moments, MomentSum, Rows, as_features, same_width
from pointillist.types import InputError

Set = Rows | Moments
Portions = Callable[[], Iterable[Rows]]  # features a part at a time, as often as they are asked for


def frechet_distance(a: Set, b: Set, *, rank_deficient: bool = False) -> float:
    """The distance of two sets of features `(n, d)`, or of their saved `Moments`.

    In squared units of the features, 0 or more. A covariance of n pictures has rank n - 1 at most,
    so fewer than d + 1 are refused: the value would tell n more than the pictures.
    `rank_deficient=True` computes it all the same. Above that it still falls as n grows: compare
    equal n only.
    """
    a, b = moments_of(a, "a", rank_deficient), moments_of(b, "b", rank_deficient)
    same_width(a.mean.shape[0], b.mean.shape[0])
    fewer, more = (a, b) if a.n <= b.n else (b, a)
    part = factor(fewer.cov)  # with as few columns as there can be, none of them rounding alone
    overlap = part.T @ more.cov @ part
    roots = torch.linalg.eigvalsh((overlap + overlap.T) / 2).clamp(min=0).sqrt()
    spread = float(a.cov.trace() + b.cov.trace() - 2 * roots.sum())
    return max(float((a.mean - b.mean).square().sum()) + spread, 0.0)


def moments_of(given: Set, name: str, rank_deficient: bool = False) -> Moments:
    """Moments as given or of the features given; InputError where they are too few."""
    if not isinstance(given, Moments):
        given = Moments.of(as_features(given, name))
    d = given.mean.shape[0]
    if given.n <= d and not rank_deficient:
        raise InputError(
            f"{name} has {given.n} pictures, and a Frechet distance on {d} features needs {d + 1} "
            f"or more; give more pictures, or ask for the kernel distance, which needs 2"
        )
    for value in (given.mean, given.cov):
        if not bool(value.isfinite().all()):
            raise InputError(f"the moments of {name} hold NaN or infinity; make them again")
    return Moments(given.n, given.mean.double(), given.cov.double())


def factor(cov: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """F with F F^T = C, a column for every direction that the set fills."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    kept = filled(values)
    return vectors[:, kept] * values[kept].sqrt()


def filled(values: Float[Tensor, " d"]) -> Bool[Tensor, " d"]:
    """Which eigenvalues are more than the rounding of the largest."""
    return values > values.max() * values.shape[0] * torch.finfo(values.dtype).eps


def frechet_score(
    a: Rows | Portions, b: Set | Portions,
    *, level: float = 0.95, replicates: int = 1000, seed: int = 0,
) -> Score:  # fmt: skip
    """The distance and how far it would move with other samples as many.

    Sets come as features, or as portions of them, which are never all in memory; `b` also as
    `Moments`, which stay as they are in every replicate.

    The interval is a percentile bootstrap of the distance made linear in the weight of each sample
    (the infinitesimal jackknife: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans",
    1982, chapter 6). Resampling the pictures themselves would repeat some, so that fewer are left
    to fill the covariance, and every replicate would be biased upward by more than the interval is
    wide. What it covers is the distance expected *at this n*, which is above that of endless
    pictures; the bias is no part of it.
    """
    sets = [portions_of(one, name) for one, name in ((a, "a"), (b, "b"))]
    ours, theirs = (
        moments_of(one if isinstance(one, Moments) else streamed(one()), name)
        for one, name in zip(sets, "ab", strict=True)
    )
    value = frechet_distance(ours, theirs)
    moved = torch.zeros(replicates, dtype=torch.float64)
    for number, (one, own, other) in enumerate(((sets[0], ours, theirs), (sets[1], theirs, ours))):
        if not isinstance(one, Moments):
            bent = influence(one(), own, other)
            again = resamples(own.n, replicates, seed + number)
            moved += torch.cat([bent[chosen].mean(1) for chosen in again])
    low, high = percentiles(value + moved, level)
    return Score(value, max(low, 0.0), high, ours.n)


def portions_of(given: Set | Portions, name: str) -> Moments | Portions:
    """Features at hand as one portion; moments and portions as they are."""
    if isinstance(given, Moments) or callable(given):
        return given
    features = as_features(given, name)
    return lambda: [features]


def streamed(portions: Iterable[Rows]) -> Moments:
    gathered = MomentSum()
    for features in portions:
        gathered.add(torch.as_tensor(features))
    return gathered.moments()


def influence(portions: Iterable[Rows], ours: Moments, theirs: Moments) -> Float[Tensor, " n"]:
    """How the distance changes with the weight of each sample; the mean of all is about 0.

    d/dC tr (C C_b)^(1/2) = T/2 with T the map that carries one Gaussian to the other,
    T = F (F^T C F)^(-1/2) F^T where F F^T = C_b.
    """
    part = factor(theirs.cov)
    values, vectors = torch.linalg.eigh(part.T @ ours.cov @ part)
    kept = filled(values)  # the inverse of the others would be rounding alone
    across = part @ vectors[:, kept] * values[kept] ** -0.25
    found = []
    for features in portions:
        z = torch.as_tensor(features).detach().cpu().double() - ours.mean
        quadratic = z.square().sum(1) - (z @ across).square().sum(1)
        found.append(2 * z @ (ours.mean - theirs.mean) + quadratic)
    every = torch.cat(found)
    return every - every.mean()
