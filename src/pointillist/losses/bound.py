"""The variational bound of DDPM, which trains what a network says of the variance of a step.

Sources: Ho et al. 2006.11239 (Eq. 5 to 8; the picture's last step in levels, Eq. 13), Nichol and
Dhariwal 2102.09672 (Eq. 15 and 16: the variance between two bounds, and the hybrid loss, in which
the mean has no gradient of the bound).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr

from pointillist.objective import DDPMConfig, Interpolant
from pointillist.objective.interpolant import column
from pointillist.types import Estimate, InputError, Spec, State, Time

WEIGHT = 1.0  # loss.vlb, where a model learns the variance


def check_sigma(model: Any, objective: Interpolant) -> None:
    """InputError for a variance of steps on a path that has none."""
    if getattr(model, "learn_sigma", False) and objective.kind != "ddpm":
        raise InputError(
            f"model.learn_sigma is true, but objective.kind is {objective.kind}, on which no step "
            f"has a variance; set objective.kind=ddpm or model.learn_sigma=false"
        )


def check_steps(model: Any, objective: Interpolant, weight: float) -> None:
    """What the path of steps asks of a model and of loss.vlb, its `weight`, before training."""
    check_sigma(model, objective)
    learns, scale = getattr(model, "learn_sigma", False), getattr(model, "time_scale", 1.0)
    if learns and not weight:
        raise InputError(
            "loss.vlb is 0, so nothing would train the sigma of model.learn_sigma; set it above "
            "0, or model.learn_sigma=false"
        )
    if learns and objective.noise_length:
        raise InputError(
            f"objective.noise_length is {objective.noise_length:g}, but the sigma of "
            f"model.learn_sigma is that of each cell alone; set it to 0"
        )
    if not learns and weight != WEIGHT:
        raise InputError(
            f"loss.vlb is {weight:g}, but model {model.kind} learns no sigma that it could train; "
            f"leave it out"
        )
    if objective.kind == "ddpm" and scale != 1:
        raise InputError(
            f"model.time_scale is {scale:g}, but objective.kind is ddpm, which tells the network "
            f"the index of a step itself; set model.time_scale=1"
        )


def level_of(spec: Spec) -> float:
    """The width of a level of the data in the network's units; 0 where they have no levels."""
    return 1 / spec.scale[0] if spec.unit == "8-bit level" else 0.0


def bound_of(
    path: Interpolant,
    guess: Estimate,
    truth: Estimate,
    x: State,
    t: Time,
    spec: Spec,
    weight: Float[Tensor, "b _ *space"] | None = None,
) -> Float[Tensor, " b"] | None:
    """`variational_bound` where the guess has a variance, and None where it has not."""
    if guess.fraction is None:
        return None
    assert isinstance(path, DDPMConfig)
    strength = path.noise_strength(tuple(x.shape[2:]))
    return variational_bound(path, guess, truth, x, t, strength, level_of(spec), weight)


def variational_bound(
    path: DDPMConfig,
    guess: Estimate,
    truth: Estimate,
    x: State,
    t: Time,
    strength: float = 1.0,
    level: float = 0.0,
    weight: Float[Tensor, "b _ *space"] | None = None,
) -> Float[Tensor, " b"]:
    """One step's part of the bound, in bits for each value of a sample, at the whole step of t.

    Minus the log likelihood of x for the last step, to the data; for all others the divergence of
    the guessed step from the true posterior. The variance is exp(v log beta + (1 - v) log beta~)
    with v = `guess.fraction`, which alone has a gradient; beta~ of the last step, 0, is taken as
    that of the step before. `strength` is the standard deviation of eps. T times the mean over all
    steps bounds the likelihood of the data, but for the signal that is left at t = 0.
    """
    assert guess.fraction is not None
    alpha, sigma = (column(value, x) for value in (path.alpha(t), path.sigma(t)))
    error = truth.x - guess.x if path.predict != "eps" else (guess.eps - truth.eps) * sigma / alpha
    error = error.detach().float()  # of the picture: what a clamp does to its noise is not here
    beta, posterior = (column(value, x) for value in path.variances(t))
    v, wider = guess.fraction.float(), (beta / posterior).log().float()

    # Means are apart by beta alpha/(sigma^2 sqrt(1 - beta)) times the error of the picture.
    weighed = beta * alpha / (sigma.square() * (1 - beta).sqrt()) / (posterior.sqrt() * strength)
    lead = v * wider
    apart = (weighed.float() * error).square()
    bits = ((-lead).expm1() + lead + apart * (-lead).exp()) / 2

    # Where a step is not the last one, nothing is off: what is not taken is finite.
    last = column(path.done(t).round() <= 1, x)
    off, std = torch.where(last, error, 0.0), (beta.sqrt() * strength).float()
    std = std * ((v - 1) * wider / 2).exp()
    bits = torch.where(last, -likelihood(x.float(), x.float() - off, std, level), bits)
    bits = bits / math.log(2)
    return (bits if weight is None else bits * weight).flatten(1).mean(1)


def likelihood(
    x: Float[Tensor, "*b"], mean: Float[Tensor, "*b"], std: Float[Tensor, "*b"], level: float
) -> Float[Tensor, "*b"]:
    """Natural log of the chance that a Gaussian falls into the level of x, `level` wide.

    The outermost levels, at -1 and 1, reach to infinity. Where `level` is 0, as for latents, which
    have neither levels nor ends, it is the log density.
    """
    if not level:
        return -((x - mean) / std).square() / 2 - std.log() - math.log(2 * math.pi) / 2
    away = (x - mean) / std
    half = level / (2 * std)
    # By symmetry on the side where the chance is not the difference of two ones.
    near, far = log_ndtr(half - away.abs()), log_ndtr(-half - away.abs())
    inside = near + torch.log1p(-(far - near).exp())
    lowest, highest = x < -1 + level / 2, x > 1 - level / 2
    return torch.where(
        lowest, log_ndtr(away + half), torch.where(highest, log_ndtr(half - away), inside)
    )
