"""Rules that combine two estimates: (toward, away, w, t) to one.

Sources: Lin et al. 2305.08891 (rescale), Sadat et al. 2410.02416 (adaptive projection).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pointillist.guidance.configuration import APGConfig
from pointillist.objective import Interpolant
from pointillist.types import Estimate, State

Combine = Callable[[Estimate, Estimate, float, Tensor], Estimate]


def plain(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
    """away + w (toward - away), for picture and noise alike."""
    x, eps = away.x + w * (toward.x - away.x), away.eps + w * (toward.eps - away.eps)
    return toward._replace(x=x, eps=eps)


def moved(pair: Estimate, by: State, t: Tensor, path: Interpolant) -> Estimate:
    """The pair of the same state with its picture moved: alpha dx + sigma deps = 0.

    At the data's end sigma is 0 and a state has but one picture; samplers never ask there.
    """
    eps = pair.eps - path.alpha(t) / path.sigma(t) * by
    return pair._replace(x=pair.x + by, eps=eps)


def projected(path: Interpolant, apg: APGConfig) -> Combine:
    """Adaptive projected guidance on the predicted picture (2410.02416, Alg. 1).

    The rule remembers the sum that momentum adds to: make a new one for every walk.
    """
    running: list[Tensor] = []

    def combine(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
        difference = toward.x - away.x
        if apg.momentum:
            if running:
                difference = difference + apg.momentum * running.pop()
            running.append(difference.detach())  # a gradient is that of one evaluation
        if apg.threshold:
            size = _mean(difference * difference).sqrt()
            difference = difference * (apg.threshold / size).clamp(max=1)
        along = _mean(difference * toward.x) / _mean(toward.x * toward.x).clamp(min=1e-20)
        parallel = along * toward.x
        update = (difference - parallel) + apg.eta * parallel
        return moved(toward, (w - 1) * update, t, path)

    return combine


def rescaled(combine: Combine, path: Interpolant, phi: float) -> Combine:
    """Bring the standard deviation of each picture back to that of `toward`, by a share of phi.

    Lin et al. 2305.08891, Eq. 15 and 16, on the predicted picture: a velocity holds the noise too,
    and scaling it would leave a part of the noise in the picture.
    """

    def rule(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
        pair = combine(toward, away, w, t)
        before, after = _std(toward.x), _std(pair.x)
        ratio = torch.where(after > 0, before / after.clamp(min=1e-20), 1)
        return moved(pair, phi * (ratio - 1) * pair.x, t, path)

    return rule


def first_channels(combine: Combine, n: int) -> Combine:
    """The rule for the first n channels, as if there were no others; those stay as in `toward`.

    DiT and DiffiT guide three of the four channels of their latents.
    """

    def rule(toward: Estimate, away: Estimate, w: float, t: Tensor) -> Estimate:
        few, others = (Estimate(pair.x[:, :n], pair.eps[:, :n]) for pair in (toward, away))
        pair = combine(few, others, w, t)
        x = torch.cat((pair.x, toward.x[:, n:]), 1)
        return toward._replace(x=x, eps=torch.cat((pair.eps, toward.eps[:, n:]), 1))

    return rule


def _mean(value: State) -> Tensor:
    """Mean over all but the batch, shaped to multiply a state; summed in float32 or better."""
    wide = value if value.dtype == torch.float64 else value.float()
    return wide.mean(tuple(range(1, value.dim())), keepdim=True)


def _std(value: State) -> Tensor:
    return _mean((value - _mean(value)).square()).sqrt()
