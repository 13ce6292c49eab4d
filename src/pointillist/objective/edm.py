"""EDM: the exploding path with an answer of even size at all noises (Karras et al. 2206.00364).

With n the noise's standard deviation, d that of the data and r = sqrt(n^2 + d^2), the network sees
x_t/r and log(n)/4, and its answer F is read as x = d^2/r^2 x_t + n d/r F (Table 1). The error of
the noise is that of the picture over n, so the paper's weight (n^2 + d^2)/(n d)^2 = 1/d^2 + 1/n^2
on the picture, which is 1 on F, is loss.x = 1/d^2 and loss.eps = 1, with loss.velocity = 0.
"""

import math
from typing import Literal

from torch import Tensor

from pointillist.objective.interpolant import column
from pointillist.objective.paths import VEConfig
from pointillist.objective.times import LogitNormal, Times
from pointillist.types import Estimate, InputError, State, Time, config


@config
class EDMConfig(VEConfig):
    """`ve`, seen and answered as EDM does, at its noises: log n is normal, of mean -1.2, std 1.2.

    `sigma_data` is the standard deviation of the data. EDM's loss for 0.5, with noise_scale 1, is
    loss.velocity=0 loss.x=4 loss.eps=1: set it, as the default weighs by the velocity. `clamp` has
    nothing to bound: nothing is divided by a small sigma.
    """

    kind: Literal["edm"] = "edm"  # type: ignore[assignment]
    predict: Literal["residual"] = "residual"  # type: ignore[assignment]
    time: Times = LogitNormal(mean=1.2, std=1.2)
    clamp: float = 0.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        VEConfig.__post_init__(self)
        if not 0 < self.sigma_data < math.inf:
            raise InputError(
                f"objective.sigma_data is {self.sigma_data}; it must be above 0, and finite"
            )
        for name in ("clamp", "sampling_clamp"):
            if getattr(self, name):
                raise InputError(
                    f"objective.{name} is {getattr(self, name)}, but edm divides by no sigma that "
                    f"it could bound; leave it at 0"
                )

    def _noise(self, like: State, t: Tensor) -> tuple[Tensor, Tensor, float]:
        """n and r of the module, and how strong eps is."""
        strength = self.noise_strength(tuple(like.shape[2:]))
        n = self.sigma(column(t, like)) * strength
        return n, (n.square() + self.sigma_data**2).sqrt(), strength

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """The state at unit size, and log(n)/4 for a time."""
        strength = self.noise_strength(tuple(xt.shape[2:]))
        return xt / self._noise(xt, t)[1], (self.sigma(t) * strength).log() / 4

    def read(self, answer: Tensor, xt: State, t: Tensor, clamp: float | None = None) -> Estimate:
        """The pair behind F; eps = (x_t - x)/sigma, in which sigma is cancelled."""
        answer = answer[:, : xt.shape[1]]
        n, r, strength = self._noise(xt, t)
        d = self.sigma_data
        x = (d / r).square() * xt + n * d / r * answer
        return Estimate(x, strength * (n / r * xt - d * answer) / r)

    def answer(self, pair: Estimate, t: Tensor) -> Tensor:
        """F of a pair: (x - d^2/r^2 x_t)/(n d/r), in which n is cancelled."""
        n, r, strength = self._noise(pair.x, t)
        d = self.sigma_data
        return (n / d * pair.x - d / strength * pair.eps) / r
