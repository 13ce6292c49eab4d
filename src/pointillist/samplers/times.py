"""Grids of times: how the steps of a walk are spread.

`uniform` and `quadratic` are spaced in the path's own t, `respaced` in DDPM's steps. The others are
schedules: they space the noise-to-signal ratio sigma/alpha, and so ask for the same noises on every
path.

Sources: Karras et al. 2206.00364 (Eq. 5), Song et al. 2011.13456 (Eq. 33, for `vp`).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pointillist.objective import DDPMConfig, Interpolant, StraightConfig, VPConfig, shift_times
from pointillist.types import InputError

STRAIGHT = StraightConfig()
_VP = VPConfig()


def ratio_of(path: Interpolant, t: Tensor) -> Tensor:
    """sigma/alpha, infinite where there is no signal."""
    return path.sigma(t) / path.alpha(t)


# Ratios from `high`, where the ramp is 1, to `low`, where it is 0.


def karras(ramp: Tensor, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Even in the rho-th root: the larger rho, the smaller the steps near the data."""
    return (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))) ** rho


def polyexponential(ramp: Tensor, low: float, high: float, rho: float = 1.0) -> Tensor:
    """Even in the logarithm, of a ramp to the power rho; rho = 1 is `exponential`."""
    return (math.log(low) + ramp**rho * math.log(high / low)).exp()


def preserving(ramp: Tensor, low: float, high: float) -> Tensor:
    """Even in the time of the VP path."""
    ends = _VP.at(1 / (1 + torch.tensor([high, low], dtype=torch.float64)))
    return ratio_of(_VP, ends[1] + ramp * (ends[0] - ends[1]))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Ratios between the two that are usual, or the nearest that a path has."""

    ratios: Callable[[Tensor, float, float], Tensor]
    low: float = 0.002
    high: float = 80.0

    def __call__(self, steps: int, path: Interpolant) -> Tensor:
        """The first time is 0 and the last 1, so that a walk is whole.

        A path that ends below `low` goes there from `low` in its last step.
        """
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        least, most = ratio_of(path, ends).tolist()
        low, high = (min(max(bound, least), most) for bound in (self.low, self.high))
        if not low < high:
            raise InputError(
                f"this grid has ratios of noise to signal from {self.low:g} to {self.high:g}, the "
                f"path from {least:g} to {most:g}; choose the grid uniform"
            )
        count = steps if least < low * (1 - 1e-6) else steps + 1
        ramp = torch.linspace(1, 0, count, dtype=torch.float64)
        inside = path.at(1 / (1 + self.ratios(ramp, low, high)))[1:steps]
        return torch.cat((ends[1:], inside, ends[:1]))


def uniform(steps: int, path: Interpolant) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def quadratic(steps: int, path: Interpolant) -> Tensor:
    """Small steps near the noise."""
    return uniform(steps, path).square()


def respaced(steps: int, path: Interpolant) -> Tensor:
    """Those of DDPM's T whole steps whose index is i (T - 1)/(N - 1), rounded, as ADM chooses them.

    The last and the first are among them, and the walk's last step is the one from index 0 to the
    data, where the even grid's is T/N of those.
    """
    if not isinstance(path, DDPMConfig):
        raise InputError(
            f"grid is respaced, but path {path.kind} has no whole steps; choose the grid uniform"
        )
    last = path.steps - 1
    if steps > path.steps:
        raise InputError(
            f"steps is {steps}, but grid respaced chooses among the {path.steps} of "
            f"objective.steps; give at most so many, or choose the grid uniform"
        )
    # A sum that runs, as published: two halves of a whole number are rounded to either side.
    places = itertools.accumulate([last / max(1, steps - 1)] * (steps - 1), initial=0.0)
    index = [round(place) for place in places] if steps > 1 else [last]
    done = torch.tensor([*(last - i for i in reversed(index)), path.steps], dtype=torch.float64)
    return done / path.steps


GRIDS: dict[str, Callable[[int, Interpolant], Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "respaced": respaced,
    "karras": Schedule(karras),
    "exponential": Schedule(polyexponential),
    "polyexponential": Schedule(functools.partial(polyexponential, rho=1.5)),
    "vp": Schedule(preserving, 0.01, 150.0),
}


def time_grid(
    steps: int, shift: float = 1.0, grid: str = "uniform", path: Interpolant = STRAIGHT
) -> Tensor:
    """steps + 1 times from 0 to 1, spaced by a name of `GRIDS`, then shifted (`shift_times`).

    It moves the path's own t, where `objective.shift` may go by the noise.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; a sampler takes at least 1 step")
    if not 0 < shift < math.inf:
        raise InputError(f"shift is {shift}; it must be above 0, and finite")
    if grid not in GRIDS:
        raise InputError(f"grid {grid} is not known; there are {', '.join(GRIDS)}")
    if grid == "respaced" and shift != 1:
        raise InputError(
            f"shift is {shift:g}, but grid respaced is of whole steps, which a shift would leave; "
            f"set shift to 1 or choose the grid uniform"
        )
    return shift_times(GRIDS[grid](steps, path), shift)


def times_of(values: Sequence[float]) -> Tensor:
    """A grid of one's own: it rises from 0 to 1, so that a walk ends at the data."""
    times = torch.tensor(values, dtype=torch.float64)
    rises = len(values) > 1 and bool((times.diff() > 0).all())
    if not (rises and times[0] == 0 and times[-1] == 1):
        raise InputError(
            f"times is {list(values)}; give times that rise from 0 to 1, both included"
        )
    return times
