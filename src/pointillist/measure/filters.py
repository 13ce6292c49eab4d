"""Measurements by a window that moves over the picture."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pointillist.measure.measure import Measure, Measured, along, times
from pointillist.types import InputError, State


@functools.lru_cache(maxsize=16)
def gaussian_weights(n: int, std: float, periodic: bool) -> Float[Tensor, "n n"]:
    """Rows of Gaussian weights in float64, each with sum 1, of the n cells of an axis."""
    cells = torch.arange(n, dtype=torch.float64)
    distance = cells[None] - cells[:, None]
    reach = math.ceil(8 * std / n) if periodic else 0
    weights = torch.stack(
        [(-0.5 * ((distance + k * n) / std).square()).exp() for k in range(-reach, reach + 1)]
    ).sum(0)
    return weights / weights.sum(1, keepdim=True)


@functools.lru_cache(maxsize=16)
def _factored(n: int, std: float, periodic: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(gaussian_weights(n, std, periodic))


class Blur(Measure):
    """Gaussian means of standard deviation `std` in cells, one for all axes or one for each.

    At a rim that is not periodic the weights of the cells that are there sum to 1. What the blur
    leaves less than `faintest` of is taken as lost by the pseudo-inverse, which would otherwise
    divide rounding errors by it: A x then agrees with y to `faintest` of a picture.
    """

    def __init__(
        self, std: float | tuple[float, ...], periodic: bool = False, faintest: float = 1e-4
    ) -> None:
        given = std if isinstance(std, tuple) else (std,)
        if not given or not all(0 < part < math.inf for part in given):
            raise InputError(f"std is {std}; it must be above 0, and finite, on every axis")
        self.std, self.periodic, self.faintest = std, periodic, faintest

    def __call__(self, x: State) -> Measured:
        return along(x, [gaussian_weights(*axis) for axis in self._axes(x)])

    def transpose(self, y: Measured) -> State:
        return along(y, [gaussian_weights(*axis).T for axis in self._axes(y)])

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        left, kept, right = zip(*(_factored(*axis) for axis in self._axes(y)), strict=True)
        wide = y if y.device.type == "mps" else y.double()
        strength = functools.reduce(lambda a, b: a[..., None] * b, kept).to(wide.device, wide.dtype)
        if ridge:
            back = strength / (strength.square() + ridge)
        else:
            back = torch.where(strength > self.faintest * strength.max(), 1 / strength, 0)
        parts = back * along(wide, [part.T for part in left])
        return along(parts, [part.T for part in right]).to(y.dtype)

    def _axes(self, x: Tensor) -> list[tuple[int, float, bool]]:
        size = tuple(x.shape[2:])
        std = self.std if isinstance(self.std, tuple) else (self.std,) * len(size)
        if len(std) != len(size):
            raise InputError(f"std has {len(std)} numbers, the picture {len(size)} axes")
        return [(n, part, self.periodic) for n, part in zip(size, std, strict=True)]


class Convolution(Measure):
    """Convolution of every channel with a small kernel of odd size; beyond a rim all is 0.

    y_i = sum_j kernel_j x_(i - j), j from the kernel's middle.
    """

    def __init__(self, kernel: Float[Tensor, " *s"], periodic: bool = False) -> None:
        if not 1 <= kernel.dim() <= 3 or any(n % 2 == 0 for n in kernel.shape):
            raise InputError(
                f"kernel has {times(kernel.shape)} cells; give an odd number on 1 to 3 axes"
            )
        self.kernel, self.periodic = kernel, periodic

    def __call__(self, x: State) -> Measured:
        return self._correlated(x, self.kernel.flip(tuple(range(self.kernel.dim()))))

    def transpose(self, y: Measured) -> State:
        return self._correlated(y, self.kernel)

    def _correlated(self, x: Tensor, kernel: Tensor) -> Tensor:
        axes, size = kernel.dim(), tuple(x.shape[2:])
        if axes != len(size) or any(k > n for k, n in zip(kernel.shape, size, strict=True)):
            raise InputError(
                f"kernel has {times(kernel.shape)} cells, the picture {times(size)}; give one of "
                f"as many axes, that is no larger"
            )
        rim = [n // 2 for n in reversed(kernel.shape) for _ in range(2)]
        flat = F.pad(
            rearrange(x, "b c ... -> (b c) 1 ..."),
            rim,
            mode="circular" if self.periodic else "constant",
        )
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        found = convolve(flat, kernel.to(x.device, x.dtype)[None, None])
        return rearrange(found, "(b c) 1 ... -> b c ...", b=x.shape[0])
