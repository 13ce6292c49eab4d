"""DDPM's path of T whole steps, and what lies between them.

After n steps of noise alpha^2 = (1 - beta_0) ... (1 - beta_{n-1}) and sigma^2 = 1 - alpha^2; our
time is t = 1 - n/T. The published index of a step is n - 1: the data are n = 0, t = 1, to which
index 0 leads, and the last index, T - 1, is t = 0. Between steps log alpha^2 is a cubic of n on
every piece, of continuous slope, rising towards the data: any sampler walks there, and at whole
steps the published table is met exactly.

Sources: Ho et al. 2006.11239 (linear betas), Nichol and Dhariwal 2102.09672 (Eq. 17, betas of a
cosine; what a network says of the variance is used in `losses/bound.py`).
"""

import functools
import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.draws import Draw
from pointillist.objective.interpolant import Interpolant, widened
from pointillist.objective.times import Times, Uniform
from pointillist.types import Estimate, InputError, State, Time, config

HALVINGS = 52  # of a step of the table: down to what float64 tells apart


@functools.lru_cache(32)
def table(
    steps: int, schedule: str, device: torch.device
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """-log alpha^2 after n = 0, ..., T steps and its slope there, both per step, in float64.

    The slope is the mean of the rises on both sides, exact where they are linear in n, within half
    and three times the lesser of them: so a cubic does not turn round (Fritsch and Carlson).
    """
    i = torch.arange(steps, dtype=torch.float64)
    if schedule == "linear":
        first, last = 0.1 / steps, 20 / steps  # 1e-4 and 0.02 of a thousand
        beta = first + (last - first) * i / max(1, steps - 1)
    else:
        bar = ((torch.arange(steps + 1).double() / steps + 0.008) / 1.008 * (math.pi / 2)).cos()
        beta = (1 - (bar[1:] / bar[:-1]).square()).clamp(max=0.999)
    rise = -torch.log1p(-beta)
    depth = torch.cat((torch.zeros(1, dtype=torch.float64), rise.cumsum(0)))
    beyond = torch.cat((2 * rise[:1] - rise[1:2], rise, 2 * rise[-1:] - rise[-2:-1]))
    kept = torch.cat((rise[:1], rise, rise[-1:]))
    least = torch.minimum(kept[:-1], kept[1:])
    slope = ((beyond[:-1] + beyond[1:]) / 2).clamp(min=least / 2, max=3 * least)
    if device.type == "mps":  # which has no float64
        depth, slope = depth.float(), slope.float()
    return depth.to(device), slope.to(device)


def _cubic(f: Tensor, low: Tensor, high: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Hermite's, of values and slopes at both ends of a step, by the share f of it."""
    rise = high - low
    bent = (left - rise) * (1 - f) - (right - rise) * f
    return low + f * (rise + (1 - f) * bent)


@config
class DDPMConfig(Interpolant):
    """The discrete path of DDPM and ADM, kept in variance, of which training draws whole steps.

    `steps` is T. `schedule`: betas that rise evenly from 1e-4 to 0.02, times 1000/T, or those of a
    squared cosine, at most 0.999. The network is told the published index, T (1 - t) - 1, as a
    number: a model that multiplies its time (`model.time_scale`) takes 1 here. Drawn times are
    whole, whatever `time` and `shift` say. `clamp` acts on no step of up to 100,000.
    """

    kind: Literal["ddpm"] = "ddpm"
    predict: Literal["x", "velocity", "eps"] = "eps"
    time: Times = Uniform()
    clamp: float = 1e-3
    steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"

    # The last step of linear betas has an alpha of .006 and is asked about as it is; that of the
    # cosine has 5e-5.
    faintest: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        Interpolant.__post_init__(self)
        least = 21 if self.schedule == "linear" else 2
        if not least <= self.steps <= 100_000:
            raise InputError(
                f"objective.steps is {self.steps}; with schedule {self.schedule} it lies in "
                f"[{least}, 100000], and 1000 is what is published"
            )

    # The table, between its steps.

    def done(self, t: Tensor) -> Tensor:
        """How many steps of noise a state of time t has, T (1 - t), in float64.

        Whole where float32 cannot tell it from whole: k/T is a time of float32 to within rounding.
        """
        n = (1 - widened(t)) * self.steps
        if t.dtype == torch.float64:
            return n
        whole = n.round()
        return torch.where((n - whole).abs() <= self.steps * 2.0**-23, whole, n)

    def _piece(self, n: Tensor) -> tuple[Tensor, ...]:
        """The step that n lies in: how far, and value and slope at both of its ends."""
        depth, slope = table(self.steps, self.schedule, n.device)
        k = n.floor().clamp(0, self.steps - 1).long()
        return n - k, depth[k], depth[k + 1], slope[k], slope[k + 1]

    def _depth(self, n: Tensor) -> Tensor:
        """-log alpha^2, of n steps."""
        return _cubic(*self._piece(n))

    def _slope(self, n: Tensor) -> Tensor:
        """Its derivative by n."""
        f, low, high, left, right = self._piece(n)
        rise = high - low
        return left * (1 - f) * (1 - 3 * f) + right * f * (3 * f - 2) + 6 * f * (1 - f) * rise

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._depth(self.done(t)) / 2).exp().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(-self._depth(self.done(t))).abs().sqrt().to(t.dtype)

    def alpha_rate(self, t: Tensor) -> Tensor:
        n = self.done(t)
        rate = (-self._depth(n) / 2).exp() * self._slope(n) * (self.steps / 2)
        return rate.to(t.dtype)

    def sigma_rate(self, t: Tensor) -> Tensor:
        """-alpha alpha'/sigma, which has no bound at the data: there sigma is 1e-3, as on `vp`."""
        return -self.alpha(t) * self.alpha_rate(t) / self.sigma(t).clamp(min=1e-3)

    def at(self, share: Tensor) -> Tensor:
        wide = widened(share)
        depth = torch.log1p(((1 - wide) / wide).square())
        nodes, _ = table(self.steps, self.schedule, wide.device)
        k = (torch.searchsorted(nodes, depth.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        _, *ends = self._piece(k.to(depth.dtype))
        low, width = torch.zeros_like(depth), 1.0
        for _ in range(HALVINGS):
            width /= 2
            low = torch.where(_cubic(low + width, *ends) <= depth, low + width, low)
        # Beyond the last step, and for no signal at all, it is the noise itself.
        n = torch.where(depth >= nodes[-1], float(self.steps), k + low)
        return (1 - n / self.steps).clamp(0, 1).to(share.dtype)

    def variances(self, t: Time) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """beta of the step that begins at the whole step of t, and beta~, the true posterior's.

        beta~ = beta sigma'^2/sigma^2 is 0 in the last step, and taken as that of the one before.
        """
        depth, _ = table(self.steps, self.schedule, t.device)
        k = self.done(t).round().long().clamp(1, self.steps)
        beta, upper = -torch.expm1(depth[k - 1] - depth[k]), k.clamp(min=2)
        share = torch.expm1(-depth[upper - 1]) / torch.expm1(-depth[upper])
        return beta, -torch.expm1(depth[upper - 1] - depth[upper]) * share

    # Training.

    def times(self, draw: Draw) -> Time:
        """One whole step a sample: 0, 1/T, ..., (T - 1)/T, evenly where `time` is uniform."""
        drawn = Interpolant.times(self, draw).double()
        return ((drawn * self.steps).floor().clamp(max=self.steps - 1) / self.steps).float()

    # Around the network.

    def see(self, xt: State, t: Time) -> tuple[State, Time]:
        """The state, and the index of its last step of noise, n - 1, which may be a fraction."""
        return xt, (self.done(t) - 1).to(t.dtype)

    def read(self, answer: Tensor, xt: State, t: Tensor, clamp: float | None = None) -> Estimate:
        """The pair; where there are twice the channels, the second half o is read as (o + 1)/2.

        That is v of Nichol and Dhariwal's Eq. 15, variance = exp(v log beta + (1 - v) log beta~),
        which need not lie in [0, 1].
        """
        pair = Interpolant.read(self, answer, xt, t, clamp)
        c = xt.shape[1]
        if answer.shape[1] != 2 * c:
            return pair
        return pair._replace(fraction=(answer[:, c:] + 1) / 2)

    def progress(self, t: float) -> float:
        """1 - index/T, by which published schedules of guidance go."""
        return min(1.0, t + 1 / self.steps)
