"""Samplers that go by the predicted picture, which alone they approximate.

Their time is lambda = log(alpha/sigma).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pointillist.objective import Interpolant
from pointillist.samplers.step import (
    Noise,
    Times,
    Velocity,
    Watch,
    log_signal,
    pair_of,
    path_of,
    toward,
    walk,
)


def dpmpp_2m(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """DPM-Solver++(2M), one evaluation a step (Lu et al. 2211.01095, Alg. 2).

    The picture is extrapolated in lambda to the middle of the step by its last two values; by one
    in the first step, in the second if the first began at lambda = -inf, and where sigma ends at 0.
    """
    path, before = path_of(field), None
    h_before = torch.tensor(torch.inf, dtype=torch.float64)
    for step in walk(field, times, watch):
        t, end, picture = step.t, step.end, step.pair(x).x
        h, middle = log_signal(path, end) - log_signal(path, t), picture
        if before is not None and h.isfinite():
            w = h / (2 * h_before)
            middle = (1 + w) * picture - w * before
        x = toward(path, x, middle, t, end)
        before, h_before = picture, h
    return x


def dpmpp_2s(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """DPM-Solver++(2S), two evaluations a step (Lu et al. 2211.01095, Alg. 1, r = 1/2).

    The picture of a step is asked for in its middle by lambda. A step that begins or ends at
    lambda = -inf or inf has no middle and keeps the picture it began with.
    """
    path = path_of(field)
    for step in walk(field, times, watch):
        t, end, picture = step.t, step.end, step.pair(x).x
        middle = (log_signal(path, t) + log_signal(path, end)) / 2
        if middle.isfinite():
            s = path.at(torch.sigmoid(middle))
            picture = pair_of(field, toward(path, x, picture, t, s), s).x
        x = toward(path, x, picture, t, end)
    return x


def unipc(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 and data prediction, one evaluation a step (2302.04867, Alg. 3).

    The predictor is `dpmpp_2m`'s step. The picture found at its end then corrects that step (with
    no new evaluation there) before the next is predicted.
    """
    path, before = path_of(field), None
    h_before = torch.tensor(torch.inf, dtype=torch.float64)
    correct: Callable[[Tensor], Tensor] | None = None
    for step in walk(field, times, watch):
        t, end, picture = step.t, step.end, step.pair(x).x
        if correct is not None:
            x = correct(picture)
        h = log_signal(path, end) - log_signal(path, t)
        rise = torch.zeros_like(x)  # of the picture over a step as long as this one
        if before is not None and h.isfinite():
            rise = h / h_before * (picture - before)
        correct = functools.partial(
            _corrected, path, x, picture, rise, t, end, h, None if before is None else h_before / h
        )
        x = toward(path, x, picture + rise / 2, t, end)
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
    return toward(path, x, picture + old * rise + new * (found - picture), t, end)
