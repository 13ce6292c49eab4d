"""Samplers: walk along a velocity field from the first of `times` to the last.

A field is any function of `(x, t)`; `t` reaches it as a zero-dimensional float64 tensor on the CPU,
which mixes with states of any device and type without a copy back. One that has the pair behind its
velocity, as `field.estimate(x, t)` and `field.path` (`guidance.Field`), is walked on that path; one
with `path` alone has its pair computed from state and velocity; any other function is taken to be
on the straight path, where a sampler has to know. `times` rise or fall strictly; only the samplers
that add noise need them to rise.

`noise(i)` is the noise that step i adds, as strong as the path's eps; samplers that follow the
velocity alone never call it. `watch(i, t, x, estimate)` sees every step before it is taken: the
state that is asked about, and the field's own (x, eps) pair or None; it cancels by raising. All end
exactly at `times[-1]`.

Sources: Karras et al. 2206.00364 (Heun with a last Euler step, so do JiT 2511.13720), Lu et al.
2206.00927 and 2211.01095 (DPM-Solver, DPM-Solver++), Zhao et al. 2302.04867 (UniPC), Ma et al.
2401.08740 (SiT: the stochastic equations). `tests/test_samplers.py` holds all to known answers.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointillist.objective import Interpolant, StraightConfig, shift_times
from pointillist.types import Estimate, InputError

Times = Tensor | Sequence[float]
Velocity = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor] | None
Watch = Callable[[int, float, Tensor, Estimate | None], Any]


Sampler = Callable[..., Tensor]  # of (field, x, times, *, noise=None, watch=None)


# Times.

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


# One step of a walk.


class _Step(NamedTuple):
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
            return _path(self.field).velocity(self.pair(x), self.t)
        v = self.field(x, self.t)
        if self.watch is not None:
            self.watch(self.i, float(self.t), x, None)
        return v

    def pair(self, x: Tensor) -> Estimate:
        pair = _pair(self.field, x, self.t)
        if self.watch is not None:
            own = hasattr(self.field, "estimate")
            self.watch(self.i, float(self.t), x, pair if own else None)
        return pair


STRAIGHT = StraightConfig()


def _path(field: Velocity) -> Interpolant:
    return getattr(field, "path", STRAIGHT)


def _pair(field: Velocity, x: Tensor, t: Tensor) -> Estimate:
    """The field's own pair, or the one behind its velocity on its path."""
    estimate = getattr(field, "estimate", None)
    return _path(field).pair(field(x, t), x, t) if estimate is None else estimate(x, t)


def _steps(
    field: Velocity, times: Times, watch: Watch | None, *, rising: bool = False
) -> Iterator[_Step]:
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
        yield _Step(field, watch, i, times[i], times[i + 1], i == len(times) - 2)


# Along the velocity.


def euler(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """First order, one evaluation a step: x += dt v."""
    for step in _steps(field, times, watch):
        x = x + step.dt * step.velocity(x)
    return x


def heun(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """Second order, two evaluations a step but the last, which is Euler's (t = 1 is not asked)."""
    for step in _steps(field, times, watch):
        v = step.velocity(x)
        if not step.last:
            v = (v + field(x + step.dt * v, step.end)) / 2
        x = x + step.dt * v
    return x


def ab2(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    even: bool = False,
) -> Tensor:
    """Adams-Bashforth of order two on the actual grid, one evaluation a step, first step Euler's.

    With r = dt/dt_before the weights are 1 + r/2 and -r/2: exact for v linear in t on any grid.
    With `even` they are 1.5 and -0.5 always, as in PixelDiT's sampler: exact on even grids only,
    and here for repeating figures published on shifted ones.
    """
    before: Tensor | None = None
    dt_before = torch.tensor(1.0, dtype=torch.float64)
    for step in _steps(field, times, watch):
        dt, v = step.dt, step.velocity(x)
        r = torch.ones_like(dt) if even else dt / dt_before
        x = x + dt * (v if before is None else (1 + r / 2) * v - r / 2 * before)
        before, dt_before = v, dt
    return x


def lms(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    order: int = 4,
) -> Tensor:
    """Adams-Bashforth of any order on the actual grid, one evaluation a step.

    The last `order` velocities are joined by a polynomial in t and that is integrated exactly. The
    first steps have fewer velocities to join, and their errors stay: see docs/samplers.md.
    """
    if order < 1:
        raise InputError(f"order is {order}; lms joins at least 1 velocity")
    seen: list[tuple[float, Tensor]] = []
    for step in _steps(field, times, watch):
        seen = [(float(step.t), step.velocity(x)), *seen][:order]
        weights = adams_weights([t for t, _ in seen], float(step.end))
        change = sum(w * v for w, (_, v) in zip(weights, seen, strict=True))
        x = x + step.dt * change
    return x


def adams_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Means over [nodes[0], end] of the Lagrange polynomials of the nodes, the newest first."""
    dt = end - nodes[0]
    places = [(node - nodes[0]) / dt for node in nodes]
    weights = []
    for j, place in enumerate(places):
        polynomial = [1.0]  # by rising powers
        for other in places[:j] + places[j + 1 :]:
            longer = zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
            polynomial = [(up - other * same) / (place - other) for up, same in longer]
        weights.append(sum(c / (k + 1) for k, c in enumerate(polynomial)))
    return weights


# By the predicted picture, in the time lambda = log(alpha/sigma) where only it is approximated.


def _log_signal(path: Interpolant, t: Tensor) -> Tensor:
    return path.alpha(t).log() - path.sigma(t).log()


def _toward(path: Interpolant, x: Tensor, picture: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """Where x is at `end` if the picture stays the same: (s'/s) x + (a' - a s'/s) picture.

    In this form nothing is infinite at t = 0 (lambda = -inf), and at s' = 0 it is the picture.
    """
    ratio = path.sigma(end) / path.sigma(t)
    return ratio * x + (path.alpha(end) - path.alpha(t) * ratio) * picture


def dpmpp_2m(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """DPM-Solver++(2M), one evaluation a step (Lu et al. 2211.01095, Alg. 2).

    The picture is extrapolated in lambda to the middle of the step by its last two values; by one
    in the first step, in the second if the first began at lambda = -inf, and where sigma ends at 0.
    """
    path, before = _path(field), None
    h_before = torch.tensor(torch.inf, dtype=torch.float64)
    for step in _steps(field, times, watch):
        t, end, picture = step.t, step.end, step.pair(x).x
        h, middle = _log_signal(path, end) - _log_signal(path, t), picture
        if before is not None and h.isfinite():
            w = h / (2 * h_before)
            middle = (1 + w) * picture - w * before
        x = _toward(path, x, middle, t, end)
        before, h_before = picture, h
    return x


def dpmpp_2s(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """DPM-Solver++(2S), two evaluations a step (Lu et al. 2211.01095, Alg. 1, r = 1/2).

    The picture of a step is asked for in its middle by lambda. A step that begins or ends at
    lambda = -inf or inf has no middle and keeps the picture it began with.
    """
    path = _path(field)
    for step in _steps(field, times, watch):
        t, end, picture = step.t, step.end, step.pair(x).x
        middle = (_log_signal(path, t) + _log_signal(path, end)) / 2
        if middle.isfinite():
            s = path.at(torch.sigmoid(middle))
            picture = _pair(field, _toward(path, x, picture, t, s), s).x
        x = _toward(path, x, picture, t, end)
    return x


def unipc(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 and data prediction, one evaluation a step (2302.04867, Alg. 3).

    The predictor is `dpmpp_2m`'s step. The picture found at its end then corrects that step (with
    no new evaluation there) before the next is predicted.
    """
    path, before = _path(field), None
    h_before = torch.tensor(torch.inf, dtype=torch.float64)
    correct: Callable[[Tensor], Tensor] | None = None
    for step in _steps(field, times, watch):
        t, end, picture = step.t, step.end, step.pair(x).x
        if correct is not None:
            x = correct(picture)
        h = _log_signal(path, end) - _log_signal(path, t)
        rise = torch.zeros_like(x)  # of the picture over a step as long as this one
        if before is not None and h.isfinite():
            rise = h / h_before * (picture - before)
        correct = functools.partial(
            _corrected, path, x, picture, rise, t, end, h, None if before is None else h_before / h
        )
        x = _toward(path, x, picture + rise / 2, t, end)
        before, h_before = picture, h
    return x


def _corrected(
    path: Interpolant, x: Tensor, picture: Tensor, rise: Tensor, t: Tensor, end: Tensor,
    h: Tensor, r: Tensor | None, found: Tensor,
) -> Tensor:  # fmt: skip
    """UniC: the step from x again, knowing the picture `found` at its end (2302.04867, Eq. 5).

    The weights make the mean of the picture over the step, by e^lambda, exact for a picture
    quadratic in lambda, of which the one from before (r = h_before/h) and both ends tell. The first
    step has none before it (r is None): there the mean is that of both ends, with weights of 1/2.
    """
    old, new = 0.0, 0.5
    if r is not None:
        first = 1 / -torch.expm1(-h) - 1 / h
        second = 1 / -torch.expm1(-h) - 2 * first / h
        old = float((first - second) / (1 + r))
        new = float(first) - old
    return _toward(path, x, picture + old * rise + new * (found - picture), t, end)


# Stochastic: dx = (v + D score) dt + sqrt(2 D) dw with D = -sigma sigma' (times the noise's own
# variance), which SiT calls sigma's form on the straight path. The score is -eps/sigma, so the
# drift is alpha' x + 2 sigma' eps and there is no division.


def _drift(path: Interpolant, pair: Estimate, t: Tensor) -> Tensor:
    return path.velocity(Estimate(pair.x, 2 * pair.eps), t)


def _added(path: Interpolant, step: _Step, noise: Noise) -> Tensor:
    """sqrt(2 D dt) of the step's noise."""
    if noise is None:
        raise InputError("this sampler adds noise; give noise=, a function of the step's number")
    return (-2 * path.sigma(step.t) * path.sigma_rate(step.t) * step.dt).sqrt() * noise(step.i)


def _mixed(path: Interpolant, pair: Estimate, t: Tensor) -> Tensor:
    """The state of a pair: the last step, which adds no noise that nothing would take away."""
    return path.alpha(t) * pair.x + path.sigma(t) * pair.eps


def euler_maruyama(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """Weak order one, one evaluation a step; the last one goes to the predicted pair."""
    path = _path(field)
    for step in _steps(field, times, watch, rising=True):
        pair = step.pair(x)
        if step.last:
            return _mixed(path, pair, step.end)
        x = x + step.dt * _drift(path, pair, step.t) + _added(path, step, noise)
    return x


def stochastic_heun(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """SiT's: a step's noise first, then its drift by Heun's rule; the last one as euler_maruyama's.

    Weak order one all the same (the noise is that of the step's beginning), two evaluations a step.
    """
    path = _path(field)
    for step in _steps(field, times, watch, rising=True):
        if step.last:
            return _mixed(path, step.pair(x), step.end)
        x = x + _added(path, step, noise)
        drift = _drift(path, step.pair(x), step.t)
        ahead = _pair(field, x + step.dt * drift, step.end)
        x = x + step.dt / 2 * (drift + _drift(path, ahead, step.end))
    return x


STOCHASTIC = ("euler_maruyama", "stochastic_heun")

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "ab2": ab2,
    "ab2_even": functools.partial(ab2, even=True),
    "lms": lms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2s": dpmpp_2s,
    "unipc": unipc,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
}
