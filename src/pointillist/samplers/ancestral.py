"""Samplers by the picture that put fresh noise in the place of part of the old at every step.

On any path: of the noise that belongs to the end of a step, the predicted one makes a part of
standard deviation `kept` and a new draw one of `fresh`, with kept^2 + fresh^2 = sigma'^2. The last
step keeps all of it, so that a walk ends with no noise that nothing takes away.
"""

import torch
from torch import Tensor

from pointillist.samplers.step import (
    Noise,
    Step,
    Times,
    Velocity,
    Watch,
    drawn,
    log_signal,
    pair_of,
    path_of,
    toward,
    walk,
)
from pointillist.types import InputError


def _decay(field: Velocity, step: Step) -> Tensor:
    """e^-h = alpha sigma'/(alpha' sigma) of a step of length h in lambda: 0 from pure noise."""
    path = path_of(field)
    ratio = path.alpha(step.t) * path.sigma(step.end)
    return ratio / (path.alpha(step.end) * path.sigma(step.t))


def _parts(field: Velocity, step: Step, eta: float) -> tuple[Tensor, Tensor]:
    """(kept, fresh): fresh^2 = eta^2 sigma'^2 (1 - e^-2h), the true posterior's for eta = 1."""
    sigma = path_of(field).sigma(step.end)
    share = 0.0 if step.last else eta**2 * (1 - _decay(field, step).square())
    return sigma * (torch.ones_like(sigma) - share).sqrt(), sigma * torch.as_tensor(share).sqrt()


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise InputError(f"eta is {eta}; it lies in [0, 1], 0 for no noise on the way")


def ancestral(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    eta: float = 1.0,
    large: bool = False,
) -> Tensor:
    """x' = alpha' picture + kept eps + fresh noise: first order, one evaluation a step.

    eta = 0 is DDIM (2010.02502, Eq. 12 and 16), eta = 1 is DDPM's sampler (2006.11239, Alg. 2) on a
    path that keeps the variance and the ancestral one of 2011.13456 (Eq. 47) on an exploding one:
    `ddpm` and `euler_ancestral` are one rule. With `large` the new noise is sigma/sigma' times as
    strong, DDPM's other choice of variance, right in the limit of small steps alone. Where the
    field says of every value how far it lies between the two, `pair.fraction`, that is taken
    (2102.09672, Eq. 15, with the betas of the steps that are walked), unless `large` or eta < 1.
    """
    _check_eta(eta)
    path = path_of(field)
    for step in walk(field, times, watch, rising=eta > 0):
        pair = step.pair(x)
        kept, fresh = _parts(field, step, eta)
        x = path.alpha(step.end) * pair.x + kept * pair.eps
        if fresh > 0:
            wider = path.sigma(step.t) / path.sigma(step.end)
            v = 1.0 if large else pair.fraction if eta == 1 and pair.fraction is not None else 0.0
            x = x + wider**v * fresh * drawn(noise, step.i)
    return x


def dpmpp_2s_ancestral(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    eta: float = 1.0,
) -> Tensor:
    """DPM-Solver++(2S) to where only the kept noise is left, then fresh noise; two evaluations.

    That place lies past the step's end in lambda, so for eta = 1 the picture in the middle is the
    one at the end. A step from pure noise, or to none, keeps the picture that it began with.
    """
    _check_eta(eta)
    path = path_of(field)
    for step in walk(field, times, watch, rising=eta > 0):
        t, end, picture = step.t, step.end, step.pair(x).x
        kept, fresh = _parts(field, step, eta)
        alpha = path.alpha(end)
        middle = (log_signal(path, t) + alpha.log() - kept.log()) / 2
        if middle.isfinite():
            s = torch.minimum(path.at(torch.sigmoid(middle)), end)  # equal but for rounding
            picture = pair_of(field, toward(path, x, picture, t, s), s).x
        ratio = kept / path.sigma(t)
        x = ratio * x + (alpha - path.alpha(t) * ratio) * picture
        if fresh > 0:
            x = x + fresh * drawn(noise, step.i)
    return x


def dpmpp_2m_sde(
    field: Velocity,
    x: Tensor,
    times: Times,
    *,
    noise: Noise = None,
    watch: Watch | None = None,
    eta: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint form, one evaluation a step.

    The equation with noise is solved exactly for the picture that `dpmpp_2m` extrapolates to the
    middle of a step: with e^-h the decay, x' = (sigma'/sigma) e^-(eta h) x
    + alpha' (1 - e^-((1 + eta) h)) picture + sigma' sqrt(1 - e^-(2 eta h)) noise. eta = 0 is
    `dpmpp_2m`, whose step the last one is.
    """
    _check_eta(eta)
    path, before = path_of(field), None
    h_before = torch.tensor(torch.inf, dtype=torch.float64)
    for step in walk(field, times, watch, rising=eta > 0):
        t, end, picture = step.t, step.end, step.pair(x).x
        h, decay, mix = log_signal(path, end) - log_signal(path, t), _decay(field, step), eta
        if step.last:
            mix = 0.0
        middle = picture
        if before is not None and h.isfinite():
            w = h / (2 * h_before)
            middle = (1 + w) * picture - w * before
        x = (
            path.sigma(end) / path.sigma(t) * decay**mix * x
            + path.alpha(end) * (1 - decay ** (1 + mix)) * middle
        )
        fresh = path.sigma(end) * (1 - decay ** (2 * mix)).sqrt()
        if fresh > 0:
            x = x + fresh * drawn(noise, step.i)
        before, h_before = picture, h
    return x
