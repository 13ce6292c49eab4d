"""Moving averages of the weights, several at once, and averages of any width after the fact.

Beside averages of fixed decay there are power-function averages (Karras et al. 2312.02696, Sec. 3):
after t updates the weights of update s count in proportion to s^gamma, so the average forgets the
beginning however long the run is. Its `width` is the standard deviation of that profile relative to
t (sigma_rel; 0.05 is 5 % of the run). Snapshots of a few widths at many times span a space of
profiles, and `fit` finds the combination in it that is nearest to any other profile.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn


class EMA:
    """One float32 average of all parameters for every decay.

    With `warmup` the k-th update uses min(decay, (1 + k)/(10 + k)), so that a run of a few hundred
    steps is not dominated by its initial weights. `widths` adds power-function averages, which
    need no warm-up: the first update takes the weights as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        decays: Sequence[float],
        warmup: bool = True,
        widths: Sequence[float] = (),
    ) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.warmup, self.updates = warmup, 0
        self.averages: dict[float, list[Tensor]] = {
            decay: [p.detach().float().clone() for p in model.parameters()] for decay in decays
        }
        self.power: dict[float, list[Tensor]] = {
            width: [p.detach().float().clone() for p in model.parameters()] for width in widths
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        current = [p.detach() for p in model.parameters()]
        for decay, average in self.averages.items():
            k = self.updates
            now = min(decay, (1 + k) / (10 + k)) if self.warmup else decay
            torch._foreach_lerp_(average, current, 1 - now)
        self.updates += 1
        for width, average in self.power.items():
            now = power_decay(gamma_of(width), self.updates)
            torch._foreach_lerp_(average, current, 1 - now)

    def state(self, decay: float) -> dict[str, Tensor]:
        return dict(zip(self.names, self.averages[decay], strict=True))

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Every average by the name it has in a checkpoint."""
        fixed = {f"ema-{decay}": self.state(decay) for decay in self.averages}
        return {**fixed, **self.power_groups()}

    def power_groups(self) -> dict[str, dict[str, Tensor]]:
        return {
            power_group(width): dict(zip(self.names, average, strict=True))
            for width, average in self.power.items()
        }

    @torch.no_grad()
    def load(self, groups: dict[str, dict[str, Tensor]]) -> None:
        for name, ours in self.groups().items():
            for key, average in ours.items():
                average.copy_(groups[name][key])


def power_group(width: float) -> str:
    return f"power-{width}"


# Power-function averages.

WIDEST = 12**-0.5  # of gamma = 0, where all updates count alike


def gamma_of(width: float) -> float:
    """The exponent whose profile has that relative width, in (0, WIDEST).

    2312.02696, Sec. 3.1: the largest root of (g + 2)^2 (g + 3) = (g + 1) / width^2.
    """
    w = width**-2
    return float(numpy.roots([1, 7, 16 - w, 12 - w]).real.max())


def width_of(gamma: float) -> float:
    """Standard deviation of the profile, relative to its end."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def power_decay(gamma: float, t: int) -> float:
    """beta(t) = (1 - 1/t)^(gamma + 1), what update number t = 1, 2, ... keeps of the average."""
    return (1 - 1 / t) ** (gamma + 1)


class Profile(NamedTuple):
    """A power-function average: `updates` so far, and the exponent of its profile.

    p(s) = (gamma + 1) s^gamma / updates^(gamma + 1) for s up to `updates`. With `power_decay` the
    weights after update s count exactly by the integral of p over (s - 1, s].
    """

    updates: float
    gamma: float


def inner_product(a: Sequence[Profile], b: Sequence[Profile]) -> Tensor:
    """Integrals of the product of every profile of `a` with every one of `b`, in float64."""
    ta, ga = torch.tensor(a, dtype=torch.float64).T[:, :, None]
    tb, gb = torch.tensor(b, dtype=torch.float64).T[:, None, :]
    # (ga + 1)(gb + 1) least^(ga + gb + 1) / ((ga + gb + 1) ta^(ga + 1) tb^(gb + 1)), kept finite.
    ratio = (ta / tb) ** torch.where(ta < tb, gb, -ga)
    return (ga + 1) * (gb + 1) * ratio / ((ga + gb + 1) * torch.maximum(ta, tb))


class Fit(NamedTuple):
    """What each profile counts, and how far the combination is from the profile that was asked.

    `error` is the root of the integral of the squared difference, relative to that of the profile.
    """

    coefficients: Tensor
    error: float


def fit(profiles: Sequence[Profile], wanted: Profile, unit_sum: bool = True) -> Fit:
    """The combination of `profiles` nearest to `wanted` in least squares (2312.02696, Alg. 3).

    With `unit_sum` the nearest of those whose coefficients sum to 1. The published rule leaves the
    sum free, and with few snapshots it is well off 1, which would scale every weight of the network
    alike; with many the two rules agree.
    """
    gram, right = inner_product(profiles, profiles), inner_product(profiles, [wanted])
    scale = gram.diagonal().rsqrt()[:, None]  # unit profiles: far better conditioned
    sides = torch.cat((right, torch.ones_like(right)), 1) * scale
    solved = torch.linalg.solve(gram * scale * scale.T, sides) * scale
    found, even = solved[:, 0], solved[:, 1]
    if unit_sum:
        found = found + (1 - found.sum()) / even.sum() * even
    norm = inner_product([wanted], [wanted])[0, 0]
    square = (norm - 2 * found @ right[:, 0] + found @ gram @ found) / norm
    return Fit(found, math.sqrt(max(float(square), 0.0)))
