"""Samplers that go along the velocity, in the path's own t."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pointillist.samplers.step import Noise, Times, Velocity, Watch, walk
from pointillist.types import InputError


def euler(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """First order, one evaluation a step: x += dt v."""
    for step in walk(field, times, watch):
        x = x + step.dt * step.velocity(x)
    return x


def heun(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """Second order, two evaluations a step but the last, which is Euler's (t = 1 is not asked)."""
    for step in walk(field, times, watch):
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
    for step in walk(field, times, watch):
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
    for step in walk(field, times, watch):
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
