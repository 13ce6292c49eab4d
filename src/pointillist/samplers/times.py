"""Grids of times: how the steps of a walk are spread."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pointillist.objective import shift_times
from pointillist.types import InputError

GRIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda even: even,
    "quadratic": lambda even: even.square(),  # small steps near the noise
}


def time_grid(steps: int, shift: float = 1.0, grid: str = "uniform") -> Tensor:
    """steps + 1 times from 0 to 1, spaced by a name of `GRIDS`, then shifted (`shift_times`).

    It moves the path's own t, where `objective.shift` may go by the noise.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; a sampler takes at least 1 step")
    if not 0 < shift < math.inf:
        raise InputError(f"shift is {shift}; it must be above 0, and finite")
    if grid not in GRIDS:
        raise InputError(f"grid {grid} is not known; there are {', '.join(GRIDS)}")
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return shift_times(GRIDS[grid](even), shift)


def times_of(values: Sequence[float]) -> Tensor:
    """A grid of one's own: it rises from 0 to 1, so that a walk ends at the data."""
    times = torch.tensor(values, dtype=torch.float64)
    rises = len(values) > 1 and bool((times.diff() > 0).all())
    if not (rises and times[0] == 0 and times[-1] == 1):
        raise InputError(
            f"times is {list(values)}; give times that rise from 0 to 1, both included"
        )
    return times
