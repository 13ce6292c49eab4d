"""The stochastic equation dx = (v + D score) dt + sqrt(2 D) dw, step by step.

D = -sigma sigma' (times the noise's own variance), which SiT calls sigma's form on the straight
path. The score is -eps/sigma, so the drift is alpha' x + 2 sigma' eps and there is no division.
"""

from torch import Tensor

from pointillist.objective import Interpolant
from pointillist.samplers.step import (
    Noise,
    Step,
    Times,
    Velocity,
    Watch,
    drawn,
    mixed,
    pair_of,
    path_of,
    walk,
)
from pointillist.types import Estimate


def _drift(path: Interpolant, pair: Estimate, t: Tensor) -> Tensor:
    return path.velocity(Estimate(pair.x, 2 * pair.eps), t)


def _added(path: Interpolant, step: Step, noise: Noise) -> Tensor:
    """sqrt(2 D dt) of the step's noise."""
    return (-2 * path.sigma(step.t) * path.sigma_rate(step.t) * step.dt).sqrt() * drawn(
        noise, step.i
    )


def euler_maruyama(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """Weak order one, one evaluation a step; the last one goes to the predicted pair."""
    path = path_of(field)
    for step in walk(field, times, watch, rising=True):
        pair = step.pair(x)
        if step.last:
            return mixed(path, pair, step.end)
        x = x + step.dt * _drift(path, pair, step.t) + _added(path, step, noise)
    return x


def stochastic_heun(
    field: Velocity, x: Tensor, times: Times, *, noise: Noise = None, watch: Watch | None = None
) -> Tensor:
    """SiT's: a step's noise first, then its drift by Heun's rule; the last one as euler_maruyama's.

    Weak order one all the same (the noise is that of the step's beginning), two evaluations a step.
    """
    path = path_of(field)
    for step in walk(field, times, watch, rising=True):
        if step.last:
            return mixed(path, step.pair(x), step.end)
        x = x + _added(path, step, noise)
        drift = _drift(path, step.pair(x), step.t)
        ahead = pair_of(field, x + step.dt * drift, step.end)
        x = x + step.dt / 2 * (drift + _drift(path, ahead, step.end))
    return x
