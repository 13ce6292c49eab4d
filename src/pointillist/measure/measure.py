"""What every measurement is: a linear map with its transpose and its pseudo-inverse."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import InputError, State

Measured = Float[Tensor, "b _ *measured"]


class Measure(ABC):
    """A linear map of pictures. `tolerance` and `iterations` bound the conjugate gradients."""

    tolerance: ClassVar[float] = 1e-6
    iterations: ClassVar[int] = 300

    @property
    def tight(self) -> float | None:
        """c where A A^T = c I, None where it is no multiple of the identity."""
        return None

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
                f"the picture has shape {times(x.shape[1:])}, the measurement is of "
                f"{times(self.shape)}; ask for that size"
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

    def pseudo_inverse(self, y: Measured, ridge: float = 0.0) -> State:
        first, *rest = self.parts
        if not rest:
            return first.pseudo_inverse(y, ridge)
        if first.tight is None:
            return super().pseudo_inverse(y, ridge)
        # With A = P B and B B^T = c: B^T P^T (c P P^T + ridge)^-1 y, which P itself can invert.
        inner = Chain(*rest).pseudo_inverse(y, ridge / first.tight)
        return first.transpose(inner) / first.tight

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
            f"the transpose gives a picture of {times(back.shape[1:])}, the measurement takes "
            f"{times(shape)}; give the transpose of the function itself"
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


def along(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Each axis of space through a matrix of its own."""
    for axis, matrix in enumerate(matrices, start=2):
        x = (x.movedim(axis, -1) @ matrix.T.to(x.device, x.dtype)).movedim(-1, axis)
    return x


def times(shape: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, shape))
