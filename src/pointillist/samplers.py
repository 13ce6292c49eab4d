"""Samplers: walk along a velocity field from the first of `times` to the last.

A field is any function of `(x, t)`; `t` reaches it as a zero-dimensional float64 tensor on the CPU,
which mixes with states of any device and type without a copy back. `watch(i, t, x, estimate)` sees
every step before it is taken, with the field's own (x, eps) pair where the field offers one and
None otherwise; it cancels by raising. All end exactly at `times[-1]`.

Sources: JiT 2511.13720 (Heun with a last Euler step), Karras et al. 2206.00364, Lu et al.
2211.01095 (DPM-Solver++ 2M). The constant-oracle test of `tests/test_samplers.py` holds for all.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pointillist.objective import shift_times
from pointillist.types import Estimate, InputError

Velocity = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, float, Tensor, Estimate | None], Any]


class Sampler(Protocol):
    def __call__(
        self, field: Velocity, x: Tensor, times: Tensor, *, watch: Watch | None = None
    ) -> Tensor: ...


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """steps + 1 times from 0 to 1, evenly spaced and then shifted (`objective.shift_times`)."""
    if steps < 1:
        raise InputError(f"steps is {steps}; a sampler takes at least 1 step")
    return shift_times(torch.linspace(0, 1, steps + 1, dtype=torch.float64), shift)


def _steps(
    field: Velocity, times: Tensor, watch: Watch | None
) -> Iterator[tuple[int, Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Number, start and end of every step, and the velocity at its start (shown to `watch`)."""
    times = times.detach().cpu().double()

    for i in range(len(times) - 1):
        t = times[i]

        def velocity(x: Tensor, t: Tensor = t, i: int = i) -> Tensor:
            estimate = getattr(field, "estimate", None)
            if estimate is None:
                v, pair = field(x, t), None
            else:
                pair = estimate(x, t)
                v = field.path.velocity(pair, t)  # type: ignore[attr-defined]
            if watch is not None:
                watch(i, float(t), x, pair)
            return v

        yield i, t, times[i + 1], velocity


def euler(field: Velocity, x: Tensor, times: Tensor, *, watch: Watch | None = None) -> Tensor:
    """First order, one evaluation a step: x += dt v."""
    for _, t, end, velocity in _steps(field, times, watch):
        x = x + (end - t) * velocity(x)
    return x


def heun(field: Velocity, x: Tensor, times: Tensor, *, watch: Watch | None = None) -> Tensor:
    """Second order, two evaluations a step but the last, which is Euler's (t = 1 is not asked)."""
    last = len(times) - 2
    for i, t, end, velocity in _steps(field, times, watch):
        dt, v = end - t, velocity(x)
        if i < last:
            v = (v + field(x + dt * v, end)) / 2
        x = x + dt * v
    return x


def ab2(
    field: Velocity, x: Tensor, times: Tensor, *, watch: Watch | None = None, even: bool = False
) -> Tensor:
    """Adams-Bashforth of order two on the actual grid, one evaluation a step, first step Euler's.

    With r = dt/dt_before the weights are 1 + r/2 and -r/2: exact for v linear in t on any grid.
    With `even` they are 1.5 and -0.5 always, as in PixelDiT's sampler: exact on even grids only,
    and here for repeating figures published on shifted ones.
    """
    before: Tensor | None = None
    dt_before = torch.tensor(1.0, dtype=torch.float64)
    for _, t, end, velocity in _steps(field, times, watch):
        dt, v = end - t, velocity(x)
        r = torch.ones_like(dt) if even else dt / dt_before
        x = x + dt * (v if before is None else (1 + r / 2) * v - r / 2 * before)
        before, dt_before = v, dt
    return x


def dpmpp_2m(field: Velocity, x: Tensor, times: Tensor, *, watch: Watch | None = None) -> Tensor:
    """DPM-Solver++(2M), data prediction, on the straight path (Lu et al. 2211.01095, Alg. 2).

    With s = 1 - t, lambda = log(t/s) and D the predicted picture, extrapolated to the middle of
    the step by its last two values:  x' = (s'/s) x + (t' - t s'/s) D.  This form stays finite at
    t = 0 (lambda = -inf, so the step after it extrapolates by 0) and at t = 1, where x' = D.
    """
    before: Tensor | None = None
    h_before = torch.tensor(torch.inf, dtype=torch.float64)
    for _, t, end, velocity in _steps(field, times, watch):
        picture = x + (1 - t) * velocity(x)
        h = torch.logit(end) - torch.logit(t)
        middle = picture
        if before is not None and end < 1:
            w = h / (2 * h_before)
            middle = (1 + w) * picture - w * before
        ratio = (1 - end) / (1 - t)
        x = ratio * x + (end - t * ratio) * middle
        before, h_before = picture, h
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "ab2": ab2,
    "ab2_even": functools.partial(ab2, even=True),
    "dpmpp_2m": dpmpp_2m,
}
