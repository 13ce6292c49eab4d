"""The table of paths: alpha, sigma and their derivatives, from noise at 0 to data at 1."""

import math
from typing import Literal

import torch
from torch import Tensor

from pointillist.objective.interpolant import Interpolant, column, widened
from pointillist.objective.times import Times, Uniform
from pointillist.types import InputError, State, Time, config


@config
class StraightConfig(Interpolant):
    """alpha = t, sigma = 1 - t: the straight line from noise to data (2210.02747, 2209.03003)."""

    kind: Literal["straight"] = "straight"

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def at(self, share: Tensor) -> Tensor:
        return share


@config
class GVPConfig(Interpolant):
    """alpha = sin(pi t/2), sigma = cos(pi t/2): variance kept, at even angular speed (SiT)."""

    kind: Literal["gvp"] = "gvp"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(widened(t) * (math.pi / 2)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin((1 - widened(t)) * (math.pi / 2)).to(t.dtype)  # exactly 0 at t = 1

    def alpha_rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def at(self, share: Tensor) -> Tensor:
        wide = widened(share)
        return (2 / math.pi * torch.atan2(wide, 1 - wide)).to(share.dtype)


@config
class VPConfig(Interpolant):
    """Variance kept by a linear beta (Song et al. 2011.13456, Eq. 33; SiT's interpolant of it).

    With u = 1 - t:  log alpha = -(beta_max - beta_min) u^2/4 - beta_min u/2,
    sigma = sqrt(1 - alpha^2), and alpha' = alpha beta(u)/2, sigma' = -alpha alpha'/sigma, which has
    no bound at t = 1: there sigma is taken as 1e-3 or more, what it is 1e-5 before the end.
    """

    kind: Literal["vp"] = "vp"
    time: Times = Uniform()
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        Interpolant.__post_init__(self)
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise InputError(
                f"objective.beta_min is {self.beta_min:g} and beta_max {self.beta_max:g}; set "
                f"0 < beta_min <= beta_max, both finite"
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        u = 1 - widened(t)
        return -u * ((self.beta_max - self.beta_min) * u / 4 + self.beta_min / 2)

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(2 * self._log_alpha(t)).abs().sqrt().to(t.dtype)

    def alpha_rate(self, t: Tensor) -> Tensor:
        beta = self.beta_min + (self.beta_max - self.beta_min) * (1 - t)
        return self.alpha(t) * beta / 2

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t).clamp(min=1e-3)

    def at(self, share: Tensor) -> Tensor:
        wide = widened(share)
        depth = 0.5 * torch.log1p(((1 - wide) / wide).square())  # -log alpha
        root = (self.beta_min**2 + 4 * (self.beta_max - self.beta_min) * depth).sqrt()
        return (1 - 4 * depth / (self.beta_min + root)).nan_to_num(0).clamp(min=0).to(share.dtype)


@config
class CosineConfig(Interpolant):
    """Variance kept by the cosine of an offset angle (Nichol and Dhariwal 2102.09672, Eq. 17).

    With u = 1 - t: alpha = cos((u + s)/(1 + s) pi/2) / cos(s/(1 + s) pi/2), sigma =
    sqrt(1 - alpha^2), in continuous time and with nothing cut off at the noise. With
    w = pi/2/(1 + s) that is alpha = sin(w t)/sin w. The offset s makes noise rise at once on
    leaving the data, as sqrt(u); without one it is `gvp`, on which it rises as u. So
    sigma' = -alpha alpha'/sigma has no bound at t = 1: there sigma is taken as 1e-3 or more.
    """

    kind: Literal["cosine"] = "cosine"
    time: Times = Uniform()
    offset: float = 0.008

    def __post_init__(self) -> None:
        Interpolant.__post_init__(self)
        if not 0 < self.offset <= 1:
            raise InputError(
                f"objective.offset is {self.offset:g}; it lies in (0, 1], and "
                f"objective.kind=gvp is the path without one"
            )

    @property
    def _widest(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        angle = self._widest * widened(t)
        return (torch.sin(angle) / math.sin(self._widest)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        left, past = (self._widest * (1 + sign * widened(t)) for sign in (-1, 1))
        return ((left.sin() * past.sin()).sqrt() / math.sin(self._widest)).to(t.dtype)

    def alpha_rate(self, t: Tensor) -> Tensor:
        scale = self._widest / math.sin(self._widest)
        return (scale * torch.cos(self._widest * widened(t))).to(t.dtype)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t).clamp(min=1e-3)

    def at(self, share: Tensor) -> Tensor:
        wide = widened(share)
        rise = math.cos(self._widest)
        angle = torch.atan2(math.sin(self._widest) * wide, torch.hypot(rise * wide, 1 - wide))
        return (angle / self._widest).clamp(0, 1).to(share.dtype)


@config
class VEConfig(Interpolant):
    """alpha = 1, sigma = sigma_max^(1 - t) sigma_min^t: noise is taken away from a picture that
    keeps its size (Song et al. 2011.13456, Eq. 31), with the bounds of Karras et al. 2206.00364.

    It ends with noise of sigma_min: 0.002 is a quarter of an 8-bit level. Velocities are as large
    as the noise times log(sigma_max/sigma_min), so a network had better answer with x.
    """

    kind: Literal["ve"] = "ve"
    predict: Literal["x", "velocity", "eps"] = "x"
    time: Times = Uniform()
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        Interpolant.__post_init__(self)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                f"objective.sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}; set "
                f"0 < sigma_min < sigma_max, both finite"
            )

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_min / self.sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return (self.sigma_max * (self._rate * widened(t)).exp()).to(t.dtype)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self._rate * self.sigma(t)

    def at(self, share: Tensor) -> Tensor:
        wide = widened(share)
        return (((1 - wide) / wide / self.sigma_max).log() / self._rate).clamp(0, 1).to(share.dtype)

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """The state over sqrt(1 + the noise's variance), of even size at all times (EDM's c_in)."""
        noise = self.sigma(column(t, xt)) * self.noise_strength(tuple(xt.shape[2:]))
        return xt / (1 + noise.square()).sqrt(), t
