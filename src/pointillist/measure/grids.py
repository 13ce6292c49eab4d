"""Measurements on grids: single cells, and means over the cells of a coarser grid."""

import functools
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.layers.observations import overlaps
from pointillist.measure.measure import Measure, Measured, along, times
from pointillist.types import InputError, State


class Mask(Measure):
    """Values where `mask` is true; y is as large as the picture, and 0 elsewhere.

    One row of the mask is taken for all pictures, one channel for all channels.
    """

    def __init__(self, mask: Bool[Tensor, "b c *space"]) -> None:
        self.mask = mask

    def __call__(self, x: State) -> Measured:
        return torch.where(self._at(x), x, 0)

    def transpose(self, y: Measured) -> State:
        return self(y)

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        return self(y) / (1 + ridge)

    def count(self, y: Measured) -> Float[Tensor, " b"]:
        return self._at(y).expand_as(y).flatten(1).sum(1).to(y.dtype)

    def rows(self, which: slice | Tensor) -> Measure:
        return self if self.mask.shape[0] == 1 else Mask(self.mask[which])

    def _at(self, x: Tensor) -> Tensor:
        if self.mask.shape[2:] != x.shape[2:]:
            raise InputError(
                f"mask has {times(self.mask.shape[2:])} cells, the picture "
                f"{times(x.shape[2:])}; give one on the picture's grid"
            )
        return self.mask.to(x.device)


class Box(Measure):
    """Means over boxes of `factors` cells, one factor an axis: A A^T = I/n, n cells a box."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        if not factors or min(factors) < 1:
            raise InputError(f"factors is {list(factors)}; give 1 or more for every axis")
        self.factors = tuple(factors)

    @property
    def tight(self) -> float:
        return 1 / math.prod(self.factors)

    def __call__(self, x: State) -> Measured:
        size = tuple(x.shape[2:])
        wrong = len(size) != len(self.factors)
        if wrong or any(n % f for n, f in zip(size, self.factors, strict=True)):
            raise InputError(
                f"factors is {list(self.factors)}, the picture has {times(size)} cells; give one "
                f"factor an axis, that divides it"
            )
        for axis, factor in enumerate(self.factors, start=2):
            x = x.unflatten(axis, (-1, factor)).mean(axis + 1)
        return x

    def transpose(self, y: Measured) -> State:
        for axis, factor in enumerate(self.factors, start=2):
            y = y.repeat_interleave(factor, axis)
        return y / math.prod(self.factors)

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        return self.transpose(y) / (1 / math.prod(self.factors) + ridge)


@functools.lru_cache(maxsize=16)
def _area_factors(n: int, m: int) -> tuple[Tensor, Tensor]:
    """The means of n cells of an axis over m cells, and their pseudo-inverse, in float64."""
    weights = overlaps(n, m).double()
    weights = weights / weights.sum(1, keepdim=True)
    return weights, torch.linalg.pinv(weights)


class Area(Measure):
    """Means over the cells of a coarser grid `there`, whose rims may cut through cells."""

    def __init__(self, size: tuple[int, ...], there: tuple[int, ...]) -> None:
        if len(size) != len(there) or any(n < m for n, m in zip(size, there, strict=True)):
            raise InputError(
                f"there is {times(there)} cells, the picture has {times(size)}; give a grid that "
                f"is no finer"
            )
        self.factors = [_area_factors(n, m) for n, m in zip(size, there, strict=True)]

    def __call__(self, x: State) -> Measured:
        return along(x, [there for there, _ in self.factors])

    def transpose(self, y: Measured) -> State:
        return along(y, [there.T for there, _ in self.factors])

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        if ridge:
            return super().pseudo_inverse(y, ridge)
        return along(y, [back for _, back in self.factors])


def area(size: tuple[int, ...], there: tuple[int, ...]) -> Measure:
    """Means over the cells of a coarser grid: boxes where whole cells lie in each."""
    if all(n % m == 0 for n, m in zip(size, there, strict=True)):
        return Box(tuple(n // m for n, m in zip(size, there, strict=True)))
    return Area(size, there)
