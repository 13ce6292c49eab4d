"""Linear measurements y = A x of a picture, each with its transpose and its pseudo-inverse.

All work on every picture of a batch by itself, on one to three axes of space and in the precision
that they are given; they are not trained, and no random number is drawn. `pseudo_inverse(y, ridge)`
is A^T (A A^T + ridge)^-1 y, with ridge 0 the shortest picture whose measurement is nearest to y. It
is exact where A A^T is known (a mask, boxes, a Gaussian blur), and by conjugate gradients elsewhere
(Hestenes and Stiefel 1952, in the form for least squares, which also holds where no picture has the
measurement y).
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import InputError, State

Measured = Float[Tensor, "b _ *measured"]


class Measure(ABC):
    """A linear map of pictures. `tolerance` and `iterations` bound the conjugate gradients."""

    tolerance: ClassVar[float] = 1e-6
    iterations: ClassVar[int] = 300

    @abstractmethod
    def __call__(self, x: State) -> Measured:
        """A x."""

    @abstractmethod
    def transpose(self, y: Measured) -> State:
        """A^T y, by which <A x, y> = <x, A^T y>."""

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        """A^T (A A^T + ridge)^-1 y; with ridge 0, A+ y."""
        return least_squares(self, y, ridge, self.tolerance, self.iterations)

    def project(self, x: State, y: Measured) -> State:
        """The picture nearest to x whose measurement is y: x + A+ (y - A x)."""
        return x + self.pseudo_inverse(y - self(x))

    def count(self, y: Measured) -> Float[Tensor, " b"]:
        """How many values were measured of each picture."""
        return torch.full((y.shape[0],), float(y[0].numel()), dtype=y.dtype, device=y.device)

    def rows(self, which: slice | Tensor) -> "Measure":
        """The measurement of some pictures of the batch; one that is the same for all is itself."""
        return self


def _per_picture(value: Tensor, like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))


def _squares(value: Tensor) -> Float[Tensor, " b"]:
    return value.flatten(1).square().sum(1)


def least_squares(
    measure: Measure, y: Measured, ridge: float, tolerance: float, iterations: int
) -> State:
    """The x of least ||y - A x||^2 + ridge ||x||^2 (and least ||x||), by conjugate gradients.

    Each picture stops by itself, where its residual or the gradient has shrunk to `tolerance` of
    what it was, so that it does not depend on the others of its batch.
    """
    residual, slope = y, measure.transpose(y)
    x, way = torch.zeros_like(slope), slope
    steep = first = _squares(slope)
    whole = _squares(y)
    for _ in range(iterations):
        going = (steep > tolerance**2 * first) & (_squares(residual) > tolerance**2 * whole)
        if not going.any():
            break
        ahead = measure(way)
        curve = _squares(ahead) + ridge * _squares(way)
        length = torch.where(going & (curve > 0), steep / curve, 0)
        x = x + _per_picture(length, x) * way
        residual = residual - _per_picture(length, y) * ahead
        slope = measure.transpose(residual) - ridge * x
        before, steep = steep, torch.where(going, _squares(slope), steep)
        way = slope + _per_picture(torch.where(going, steep / before, 0), way) * way
    return x


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
                f"mask has {_times(self.mask.shape[2:])} cells, the picture "
                f"{_times(x.shape[2:])}; give one on the picture's grid"
            )
        return self.mask.to(x.device)


class Box(Measure):
    """Means over boxes of `factors` cells, one factor an axis: A A^T = I/n, n cells a box."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        if not factors or min(factors) < 1:
            raise InputError(f"factors is {list(factors)}; give 1 or more for every axis")
        self.factors = tuple(factors)

    def __call__(self, x: State) -> Measured:
        size = tuple(x.shape[2:])
        wrong = len(size) != len(self.factors)
        if wrong or any(n % f for n, f in zip(size, self.factors, strict=True)):
            raise InputError(
                f"factors is {list(self.factors)}, the picture has {_times(size)} cells; give one "
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
        return self._along(x, [gaussian_weights(*axis) for axis in self._axes(x)])

    def transpose(self, y: Measured) -> State:
        return self._along(y, [gaussian_weights(*axis).T for axis in self._axes(y)])

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        left, kept, right = zip(*(_factored(*axis) for axis in self._axes(y)), strict=True)
        wide = y if y.device.type == "mps" else y.double()
        strength = functools.reduce(lambda a, b: a[..., None] * b, kept).to(wide.device, wide.dtype)
        if ridge:
            back = strength / (strength.square() + ridge)
        else:
            back = torch.where(strength > self.faintest * strength.max(), 1 / strength, 0)
        parts = back * self._along(wide, [part.T for part in left])
        return self._along(parts, [part.T for part in right]).to(y.dtype)

    def _axes(self, x: Tensor) -> list[tuple[int, float, bool]]:
        size = tuple(x.shape[2:])
        std = self.std if isinstance(self.std, tuple) else (self.std,) * len(size)
        if len(std) != len(size):
            raise InputError(f"std has {len(std)} numbers, the picture {len(size)} axes")
        return [(n, part, self.periodic) for n, part in zip(size, std, strict=True)]

    @staticmethod
    def _along(x: Tensor, matrices: list[Tensor]) -> Tensor:
        for axis, matrix in enumerate(matrices, start=2):
            x = (x.movedim(axis, -1) @ matrix.T.to(x.device, x.dtype)).movedim(-1, axis)
        return x


class Convolution(Measure):
    """Convolution of every channel with a small kernel of odd size; beyond a rim all is 0.

    y_i = sum_j kernel_j x_(i - j), j from the kernel's middle.
    """

    def __init__(self, kernel: Float[Tensor, " *s"], periodic: bool = False) -> None:
        if not 1 <= kernel.dim() <= 3 or any(n % 2 == 0 for n in kernel.shape):
            raise InputError(
                f"kernel has {_times(kernel.shape)} cells; give an odd number on 1 to 3 axes"
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
                f"kernel has {_times(kernel.shape)} cells, the picture {_times(size)}; give one of "
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
                f"the points lie on a grid of {_times(self.size)} cells, the picture has "
                f"{_times(x.shape[2:])}; make them for the picture's grid"
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


class Linear(Measure):
    """Any linear `function` of pictures of `shape` = (c, *space), with its transpose.

    Without a transpose it is made by differentiation. `check_adjoint` tells whether a given one is
    right; nothing else would notice.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        transpose: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.function, self.shape, self.back = function, tuple(shape), transpose

    def __call__(self, x: State) -> Measured:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"the picture has shape {_times(x.shape[1:])}, the measurement is of "
                f"{_times(self.shape)}; ask for that size"
            )
        return self.function(x)

    def transpose(self, y: Measured) -> State:
        if self.back is not None:
            return self.back(y)
        with torch.enable_grad():
            x = torch.zeros(y.shape[0], *self.shape, dtype=y.dtype, device=y.device)
            return torch.autograd.grad(self.function(x.requires_grad_()), x, y)[0]


class Chain(Measure):
    """One measurement after another: `Chain(Blur(1.0), Box((2, 2)))` blurs, then takes means."""

    def __init__(self, *parts: Measure) -> None:
        if not parts:
            raise InputError("a chain has no measurement; give one or more")
        self.parts = parts

    def __call__(self, x: State) -> Measured:
        for part in self.parts:
            x = part(x)
        return x

    def transpose(self, y: Measured) -> State:
        for part in reversed(self.parts):
            y = part.transpose(y)
        return y

    def count(self, y: Measured) -> Float[Tensor, " b"]:
        return self.parts[-1].count(y)

    def rows(self, which: slice | Tensor) -> Measure:
        return Chain(*(part.rows(which) for part in self.parts))


def check_adjoint(measure: Measure, shape: tuple[int, ...], seed: int = 0) -> None:
    """InputError unless `measure` is linear on pictures of `shape` = (c, *space), and <A x, y> =
    <x, A^T y>, to 1e-5 of the lengths, for two pictures drawn from `seed`."""
    draw = Draw(seed, torch.arange(2))
    x = draw.normal("picture", tuple(shape))
    measured = measure(x)
    y = draw.normal("measurement", tuple(measured.shape[1:]))
    back = measure.transpose(y)
    if back.shape != x.shape:
        raise InputError(
            f"the transpose gives a picture of {_times(back.shape[1:])}, the measurement takes "
            f"{_times(shape)}; give the transpose of the function itself"
        )
    both = (measured - measure(x - x.flip(0)) - measure(x.flip(0))).norm() / measured.norm()
    if not both <= 1e-5:
        raise InputError(f"A x + A z differs from A (x + z) by {float(both):.2g}; A is not linear")
    apart = (measured.double() * y).flatten(1).sum(1) - (x.double() * back).flatten(1).sum(1)
    apart = (apart.abs() / (measured.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1))).max()
    if not apart <= 1e-5:
        raise InputError(
            f"<A x, y> differs from <x, A^T y> by {float(apart):.2g} of the lengths; the transpose "
            f"is not that of the function"
        )


def _times(shape: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, shape))
