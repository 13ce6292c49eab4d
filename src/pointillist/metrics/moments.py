"""Features on their way to a score: what is accepted, and their mean and covariance as they come.

Everything here is float64. A feature extractor answers in float32; squares and differences of its
numbers lose the digits that a distance of two close sets is made of.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.types import InputError

# A set of n pictures as d features each. The letters are not checked against other arguments':
# widths that differ are told in a sentence.
Rows = Float[Tensor, "_n _d"] | Float[np.ndarray, "_n _d"]


def as_features(values: Any, name: str) -> Float[Tensor, "n d"]:
    """Features in float64 on the CPU; InputError where no score can be made from them."""
    found = torch.as_tensor(values).detach().cpu().double()
    if found.dim() != 2:
        raise InputError(
            f"{name} has shape {tuple(found.shape)}; features are one row a picture, (n, d)"
        )
    if found.shape[0] < 2:
        raise InputError(f"{name} has {found.shape[0]} rows; a set has 2 pictures or more")
    check_finite(found, name)
    if bool((found == found[0]).all()):
        raise InputError(
            f"{name}: all {found.shape[0]} rows are equal; a set of one picture repeated has no "
            f"distance to another, give pictures that differ"
        )
    return found


def check_finite(features: Float[Tensor, "n d"], name: str) -> None:
    """InputError names the first row that holds NaN or infinity."""
    bad = ~features.isfinite().all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(
            f"{name}: row {row} holds NaN or infinity, and {int(bad.sum())} of {len(bad)} rows do; "
            f"find the pictures or the extractor that made them"
        )


def same_width(a: int, b: int) -> None:
    if a != b:
        raise InputError(
            f"the two sets have {a} and {b} features a picture; take both from one extractor"
        )


class Moments(NamedTuple):
    """How many features there are, their mean, and their covariance (divided by n - 1)."""

    n: int
    mean: Float[Tensor, " d"]
    cov: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Rows) -> "Moments":
        """Of features that are all at hand."""
        gathered = MomentSum()
        gathered.add(as_features(features, "features"))
        return gathered.moments()


class MomentSum:
    """Moments of features that come batch by batch; memory depends on their width alone.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979): batches are merged by the difference of their means, so nothing is lost to
    the cancellation that sums of squares suffer from.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Take in one batch of any size."""
        check_finite(features, f"features {self.n} to {self.n + features.shape[0] - 1}")
        batch = features.detach().cpu().double()
        count = batch.shape[0]
        if count == 0:
            return
        if self.n == 0:
            d = batch.shape[1]
            self.mean, self.scatter = batch.new_zeros(d), batch.new_zeros(d, d)
        same_width(self.mean.shape[0], batch.shape[1])
        mean = batch.mean(0)
        centred, shift, total = batch - mean, mean - self.mean, self.n + count
        # In place: another d x d for every term would be most of the memory.
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(shift, shift, alpha=self.n * count / total)
        self.mean = self.mean + shift * (count / total)
        self.n = total

    def moments(self) -> Moments:
        """What has come so far; InputError below 2 features, or where all are equal."""
        if self.n < 2:
            raise InputError(f"{self.n} features have no covariance; 2 are the least")
        if not bool(self.scatter.diagonal().any()):
            raise InputError(
                f"all {self.n} pictures have the same features; a set of one picture repeated has "
                f"no distance to another, give pictures that differ"
            )
        return Moments(self.n, self.mean, self.scatter / (self.n - 1))
