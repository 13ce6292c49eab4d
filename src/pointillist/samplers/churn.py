"""Samplers that add noise and take it away again: churned Heun and annealed Langevin dynamics."""

import math

from torch import Tensor

from pointillist.samplers.step import (
    Noise,
    Times,
    Velocity,
    Watch,
    drawn,
    mixed,
    pair_of,
    path_of,
    walk,
)
from pointillist.samplers.times import ratio_of
from pointillist.types import InputError

# Of the noise-to-signal ratio: float32 has three digits left of what a step from there ends at.
FARTHEST = 1e4


def heun_churn(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    churn: float = 8.0,
    low: float = 0.05,
    high: float = 50.0,
    strength: float = 1.0,
) -> Tensor:
    """EDM's stochastic sampler (2206.00364, Alg. 2) on any path, two evaluations a step.

    Where the noise-to-signal ratio n = sigma/alpha lies in [low, high] a step begins by going back
    to (1 + churn/steps) n, at most sqrt(2) n, by a draw `strength` times as strong as that takes.
    Then Heun's rule leads x/alpha, whose slope by n is eps, to the step's end. They are the paper's
    S_churn, S_min, S_max and S_noise. A step from pure noise, or all but that (n infinite, or so
    large that x/alpha loses what it is to differ by), has no second slope, nor has the last.
    `watch` sees the state that has gone back, by the step's own time.
    """
    if not 0 <= low <= high:
        raise InputError(f"low is {low} and high {high}; give 0 <= low <= high")
    if not churn >= 0 or not 0 < strength < math.inf:
        raise InputError(
            f"churn is {churn} and strength is {strength}; give 0 or more, and one that is above 0 "
            f"and finite"
        )
    path, steps = path_of(field), list(walk(field, times, watch, rising=churn > 0))
    gain = min(churn / len(steps), math.sqrt(2) - 1)
    for step in steps:
        t, end, n = step.t, step.end, ratio_of(path, step.t)
        if gain and n.isfinite() and low <= n <= high:
            t = path.at(1 / (1 + (1 + gain) * n))
            added = (ratio_of(path, t).square() - n.square()).clamp(min=0).sqrt() * strength
            x = path.alpha(t) * (x / path.alpha(step.t) + added * drawn(noise, step.i))
            n = ratio_of(path, t)
        pair = step.pair(x, t)
        ahead = mixed(path, pair, end)
        if n <= FARTHEST and not step.last:
            eps = (pair.eps + pair_of(field, ahead, end).eps) / 2
            x = path.alpha(end) * (x / path.alpha(t) + (ratio_of(path, end) - n) * eps)
        else:
            x = ahead
    return x


def langevin(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    rounds: int = 1,
    rate: float = 0.2,
) -> Tensor:
    """Annealed Langevin dynamics (1907.05600, Alg. 1), 1 + rounds evaluations a step.

    At each time `rounds` steps along the score with noise, of size `rate` sigma^2: x becomes
    x - rate sigma eps + sqrt(2 rate) sigma noise. The way to the next time is the predicted pair's
    (predictor and corrector of 2011.13456), without which the noise of the time before has to decay
    at the next: the variance of a Gaussian then takes 20 rounds and more a time to come within 5 %,
    with 64 times. Draws are counted on: round j of step i is noise(i rounds + j).
    """
    if rounds < 1 or not 0 < rate < 1:
        raise InputError(
            f"rounds is {rounds} and rate is {rate}; give 1 or more, and one in (0, 1)"
        )
    path = path_of(field)
    for step in walk(field, times, watch, rising=True):
        x = mixed(path, step.pair(x), step.end)
        if step.last:
            break
        sigma = path.sigma(step.end)
        for j in range(step.i * rounds, (step.i + 1) * rounds):
            eps = pair_of(field, x, step.end).eps
            x = x - rate * sigma * eps + math.sqrt(2 * rate) * sigma * drawn(noise, j)
    return x
