"""One step of a walk, and what all samplers ask of a field and its path."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointillist.objective import Interpolant
from pointillist.samplers.times import STRAIGHT
from pointillist.types import Estimate, InputError

Times = Tensor | Sequence[float]
Velocity = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor] | None
Watch = Callable[[int, float, Tensor, Estimate | None], Any]


Sampler = Callable[..., Tensor]  # of (field, x, times, *, noise=None, watch=None)


class Step(NamedTuple):
    """Number, start and end of a step, and whether it is the last; ask the field at its start."""

    field: Velocity
    watch: Watch | None
    i: int
    t: Tensor
    end: Tensor
    last: bool

    @property
    def dt(self) -> Tensor:
        return self.end - self.t

    def velocity(self, x: Tensor) -> Tensor:
        if hasattr(self.field, "estimate"):
            return path_of(self.field).velocity(self.pair(x), self.t)
        v = self.field(x, self.t)
        if self.watch is not None:
            self.watch(self.i, float(self.t), x, None)
        return v

    def pair(self, x: Tensor, asked: Tensor | None = None) -> Estimate:
        """The pair of a state of the step's beginning, or of the time `asked`."""
        pair = pair_of(self.field, x, self.t if asked is None else asked)
        if self.watch is not None:
            own = hasattr(self.field, "estimate")
            self.watch(self.i, float(self.t), x, pair if own else None)
        return pair


def path_of(field: Velocity) -> Interpolant:
    return getattr(field, "path", STRAIGHT)


def pair_of(field: Velocity, x: Tensor, t: Tensor) -> Estimate:
    """The field's own pair, or the one behind its velocity on its path."""
    estimate = getattr(field, "estimate", None)
    return path_of(field).pair(field(x, t), x, t) if estimate is None else estimate(x, t)


def walk(
    field: Velocity, times: Times, watch: Watch | None, *, rising: bool = False
) -> Iterator[Step]:
    """The steps of a walk, whose times are checked before the first."""
    times = torch.as_tensor(times).detach().cpu().double()
    if times.dim() != 1 or len(times) < 2 or not bool(times.isfinite().all()):
        shown = f"{len(times)} numbers" if times.dim() == 1 else f"of shape {tuple(times.shape)}"
        raise InputError(f"times is {shown}; give two or more finite times in a row")
    ups = times.diff() > 0
    if not (ups.all() or (not rising and (times.diff() < 0).all())):
        way = "rise, as this sampler adds noise" if rising else "rise, or fall, at every step"
        raise InputError(f"times is {times.tolist()}; give times that {way}")
    for i in range(len(times) - 1):
        yield Step(field, watch, i, times[i], times[i + 1], i == len(times) - 2)


def drawn(noise: Noise, i: int) -> Tensor:
    """The walk's draw number i."""
    if noise is None:
        raise InputError("this sampler adds noise; give noise=, a function of the draw's number")
    return noise(i)


def log_signal(path: Interpolant, t: Tensor) -> Tensor:
    return path.alpha(t).log() - path.sigma(t).log()


def toward(path: Interpolant, x: Tensor, picture: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """Where x is at `end` if the picture stays the same: (s'/s) x + (a' - a s'/s) picture.

    In this form nothing is infinite at t = 0 (lambda = -inf), and at s' = 0 it is the picture.
    """
    ratio = path.sigma(end) / path.sigma(t)
    return ratio * x + (path.alpha(end) - path.alpha(t) * ratio) * picture


def mixed(path: Interpolant, pair: Estimate, t: Tensor) -> Tensor:
    """The state of a pair: the last step, which adds no noise that nothing would take away."""
    return path.alpha(t) * pair.x + path.sigma(t) * pair.eps
