"""What the network is asked and how its answer is read: only this file knows the noise end.

One convention for the whole package: `t = 0` is noise, `t = 1` is data. On any path

    x_t = alpha x + sigma eps        velocity v = alpha' x + sigma' eps

and on the straight one, the default, alpha = t, sigma = 1 - t, v = x - eps. Published code with the
other convention is converted at the door. A path is `alpha`, `sigma` and their derivatives; there
is a table of four. `see` and `read` enclose the network, `target` is the answer of a perfect one.
Velocities are computed here alone.

Sources: Lipman et al. 2210.02747 and Liu et al. 2209.03003 (straight path), Ma et al. 2401.08740
(SiT: GVP and VP as interpolants), Song et al. 2011.13456 (VP, VE), Esser et al. 2403.03206
(logit-normal times, resolution shift), Li and He 2511.13720 (x-prediction, clamp, noise by size).
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import Estimate, InputError, State, Time, by_kind, config


def _wide(t: Tensor) -> Tensor:
    """In float64 where there is one: float32 exp and sin depend on the place in a batch."""
    return t if t.device.type == "mps" else t.double()


# Times of training.


@config
class Uniform:
    """Times drawn evenly from [0, 1), in the path's own t (SiT)."""

    kind: Literal["uniform"] = "uniform"

    def times(self, draw: Draw) -> Time:
        return draw.uniform("time")


@config
class LogitNormal:
    """Signal to noise log(alpha/sigma) drawn as mean + std n, on every path.

    On the straight one that is t = sigmoid(mean + std n): JiT uses (-0.8, 0.8), nearer the noise;
    PixelDiT (0, 1).
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise InputError(f"objective.time.mean is {self.mean}; it must be a finite number")
        if not 0 < self.std < math.inf:
            raise InputError(f"objective.time.std is {self.std}; it must be above 0, and finite")

    def times(self, draw: Draw) -> Time:
        # In float64, rounded once: torch's vectorised float32 exp depends on the place in a batch.
        return torch.sigmoid(self.mean + self.std * draw.normal("time").double()).float()


Times = Annotated[Uniform | LogitNormal, by_kind]


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Resolution shift: t / (t + (1 - t) a); a > 1 spends more time near the noise (2403.03206)."""
    return t if shift == 1 else t / (t + (1 - t) * shift)


def _column(t: Tensor, like: Tensor) -> Tensor:
    """Times of the batch, shaped to multiply a state."""
    return t if t.dim() == 0 else t.view(-1, *[1] * (like.dim() - 1))


# What all paths have in common.

# Where noise is predicted, the picture is what is left of the state over alpha. At alpha below this
# it is not asked for: an error of .03 in the answer is one of 3 in the picture there.
FAINTEST = 0.01


@config
class Interpolant(ABC):
    """A path between noise and data, with any of the three predictions.

    `clamp` bounds sigma (or alpha, when noise is predicted) from below where the other half of the
    pair is computed from the answer and, alike, in the target of the loss: JiT's 0.05, on 1 - t.
    `sampling_clamp` is the same bound while sampling; 0 lets the last step land on the predicted
    picture itself, JiT's published sampler has 0.05 and stops a little short of it. Where noise is
    predicted alpha is 0.01 or more (`asked`).
    `shift` = a divides the signal to noise of every drawn time by a; where `time` is uniform it
    moves the path's own t as `sample.shift` does, which is the same on the straight path.
    `noise_size`: noise has standard deviation `noise_scale` on a picture of that edge and grows in
    proportion to the edge (JiT: 256); None: the same at every size.
    """

    kind: str
    predict: Literal["x", "velocity", "eps"] = "velocity"
    time: Times = LogitNormal()
    shift: float = 1.0
    noise_scale: float = 1.0
    noise_size: int | None = None
    clamp: float = 0.05
    sampling_clamp: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "noise_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"objective.{name} is {getattr(self, name)}; it must be above 0, and finite"
                )
        for name in ("clamp", "sampling_clamp"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"objective.{name} is {getattr(self, name)}; it lies in [0, 1)")
        if self.noise_size is not None and self.noise_size < 1:
            raise InputError(f"objective.noise_size is {self.noise_size}; it must be 1 or more")

    # The path: a number for every time, of any shape.

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """What x is multiplied by."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """What eps is multiplied by."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """d alpha/dt."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """d sigma/dt."""

    @abstractmethod
    def at(self, share: Tensor) -> Tensor:
        """The time, in [0, 1], whose alpha/(alpha + sigma) is `share`; the nearest if none has."""

    def share(self, t: Tensor) -> Tensor:
        """alpha/(alpha + sigma), which is t on the straight path: the same signal to noise."""
        alpha, sigma = self.alpha(_wide(t)), self.sigma(_wide(t))
        return (alpha / (alpha + sigma)).to(t.dtype)

    def velocity(self, pair: Estimate, t: Tensor) -> Tensor:
        """alpha' x + sigma' eps."""
        t = _column(t, pair.x)
        return self.alpha_rate(t) * pair.x + self.sigma_rate(t) * pair.eps

    # Training.

    def times(self, draw: Draw) -> Time:
        """One time a sample, shifted."""
        drawn = shift_times(self.time.times(draw), self.shift)
        # The ends of VP and VE lie inside of (0, 1) by share: evenly drawn times, shifted there,
        # would pile up on an end.
        return drawn if isinstance(self.time, Uniform) else self.at(drawn)

    def noise(self, draw: Draw, shape: tuple[int, ...], purpose: str = "noise") -> State:
        """Noise of the right strength for `shape` = (c, *space)."""
        return draw.normal(purpose, shape) * self.noise_strength(shape[1:])

    def noise_strength(self, size: tuple[int, ...]) -> float:
        """Standard deviation of `eps` on a grid of `size`."""
        if self.noise_size is None:
            return self.noise_scale
        edge = math.prod(size) ** (1 / len(size))
        return self.noise_scale * edge / self.noise_size

    def mix(self, x: State, eps: State, t: Time) -> State:
        """The state at time t."""
        t = _column(t, x)
        return self.alpha(t) * x + self.sigma(t) * eps

    # Around the network.

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """What the network is shown."""
        return xt, t

    def asked(self, t: Tensor) -> Tensor:
        """The time, of no dimension, at which a walk asks for the state of time t: t itself.

        Where noise is predicted and alpha is below `FAINTEST`, it is the first time at which it is
        not: at t = 0 the noise is the state and tells nothing of the picture. The state is taken
        for one of that time, from which it differs by about as little. A perfect network is walked
        as well as one that predicts the picture: with 64 steps of Heun the variance of a Gaussian
        is off by 0.1 % on the straight and the GVP path, where a bound on alpha alone leaves 1.5
        and 2.3 %.
        """
        faint = self.predict == "eps" and bool(self.alpha(t) < FAINTEST)
        return self.at(torch.full_like(t, FAINTEST)) if faint else t

    def pair(self, velocity: Tensor, xt: Tensor, t: Tensor) -> Estimate:
        """The pair (x, eps) of a state and its velocity, of any shape: two equations, solved."""
        t = _column(t, xt)
        alpha, sigma = self.alpha(t), self.sigma(t)
        rise, fall = self.alpha_rate(t), self.sigma_rate(t)
        det = alpha * fall - rise * sigma
        return Estimate(
            fall / det * xt - sigma / det * velocity, alpha / det * velocity - rise / det * xt
        )

    def read(self, answer: Tensor, xt: State, t: Tensor, clamp: float | None = None) -> Estimate:
        """The pair (x, eps) behind an answer; only the first channels count if it has more.

        With s = alpha + sigma, x - eps is (s x - x_t)/sigma and (x_t - s eps)/alpha alike. On the
        straight path s is 1 to the last bit. `clamp`: another than that of training; alpha is
        bounded by `FAINTEST` too.
        """
        clamp = self.clamp if clamp is None else clamp
        answer = answer[:, : xt.shape[1]]
        if self.predict == "velocity":
            return self.pair(answer, xt, t)
        alpha, sigma = self.alpha(_column(t, xt)), self.sigma(_column(t, xt))
        if self.predict == "x":
            apart = ((alpha + sigma) * answer - xt) / sigma.clamp(min=clamp)
            return Estimate(answer, answer - apart)
        apart = (xt - (alpha + sigma) * answer) / alpha.clamp(min=max(clamp, FAINTEST))
        return Estimate(answer + apart, answer)

    def answer(self, pair: Estimate, t: Tensor) -> Tensor:
        """What a network would have to say to mean this pair."""
        return self.velocity(pair, t) if self.predict == "velocity" else getattr(pair, self.predict)

    def target(self, x: State, eps: State, xt: State, t: Time) -> Estimate:
        """A perfect network's answer, read as the network's own is: the clamp acts on both."""
        return self.read(self.answer(Estimate(x, eps), t), xt, t)


# The table of paths.


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
        return torch.sin(_wide(t) * (math.pi / 2)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin((1 - _wide(t)) * (math.pi / 2)).to(t.dtype)  # exactly 0 at t = 1

    def alpha_rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def at(self, share: Tensor) -> Tensor:
        wide = _wide(share)
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
        u = 1 - _wide(t)
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
        wide = _wide(share)
        depth = 0.5 * torch.log1p(((1 - wide) / wide).square())  # -log alpha
        root = (self.beta_min**2 + 4 * (self.beta_max - self.beta_min) * depth).sqrt()
        return (1 - 4 * depth / (self.beta_min + root)).nan_to_num(0).clamp(min=0).to(share.dtype)


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
        return (self.sigma_max * (self._rate * _wide(t)).exp()).to(t.dtype)

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self._rate * self.sigma(t)

    def at(self, share: Tensor) -> Tensor:
        wide = _wide(share)
        return (((1 - wide) / wide / self.sigma_max).log() / self._rate).clamp(0, 1).to(share.dtype)

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """The state over sqrt(1 + the noise's variance), of even size at all times (EDM's c_in)."""
        noise = self.sigma(_column(t, xt)) * self.noise_strength(tuple(xt.shape[2:]))
        return xt / (1 + noise.square()).sqrt(), t


def _straight_unless_said(value: Any) -> Any:
    """A configuration may leave the kind out, as all did while there was one path."""
    return {"kind": "straight", **value} if isinstance(value, dict) else value


Objective = Annotated[
    StraightConfig | GVPConfig | VPConfig | VEConfig,
    by_kind,
    BeforeValidator(_straight_unless_said),
]
