"""Measurements at points, which need not be centres of cells."""

import functools
import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.measure.measure import Measure, Measured, times
from pointillist.types import InputError, State


class Points(Measure):
    """Values at points, linear between the centres of cells and level beyond the outermost ones.

    `at` are coordinates in [-1, 1] for each axis in the order of the array, cell i of n having its
    centre at (2 i + 1)/n - 1; one row is taken for all pictures. y is `b c m`.
    """

    def __init__(self, at: Float[Tensor, "b m s"], size: tuple[int, ...]) -> None:
        if at.shape[2] != len(size):
            raise InputError(f"at has {at.shape[2]} coordinates a point, the grid {len(size)} axes")
        if not bool((at.abs() <= 1).all()):
            raise InputError("at has a coordinate outside of -1 to 1; leave such points out")
        self.at, self.size = at, tuple(size)
        cells = torch.tensor(size, dtype=torch.float64)
        place = (((at.double().cpu() + 1) * cells - 1) / 2).clamp(min=0)
        place = torch.minimum(place, cells - 1)
        low = place.floor()
        share = place - low
        self.corners = []  # numbers of cells, row-major, and their weights, for 2^s corners
        for corner in itertools.product((0, 1), repeat=len(size)):
            step = torch.tensor(corner, dtype=torch.float64)
            cell = torch.minimum(low + step, cells - 1).long()
            number = torch.zeros_like(cell[..., 0])
            for axis, n in enumerate(size):
                number = number * n + cell[..., axis]
            self.corners.append((number, torch.where(step > 0, share, 1 - share).prod(-1)))

    def __call__(self, x: State) -> Measured:
        if tuple(x.shape[2:]) != self.size:
            raise InputError(
                f"the points lie on a grid of {times(self.size)} cells, the picture has "
                f"{times(x.shape[2:])}; make them for the picture's grid"
            )
        flat = x.flatten(2)
        parts = (
            flat.gather(2, number.expand(*flat.shape[:2], -1)) * weight
            for number, weight in self._corners(x)
        )
        return functools.reduce(torch.add, parts)

    def transpose(self, y: Measured) -> State:
        flat = y.new_zeros(*y.shape[:2], math.prod(self.size))
        for number, weight in self._corners(y):
            flat.scatter_add_(2, number.expand_as(y), y * weight)
        return flat.unflatten(2, self.size)

    def rows(self, which: slice | Tensor) -> Measure:
        return self if self.at.shape[0] == 1 else Points(self.at[which], self.size)

    def _corners(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [
            (number[:, None].to(like.device), weight[:, None].to(like.device, like.dtype))
            for number, weight in self.corners
        ]
