"""Clipping by running statistics of the gradient's norm (ZClip, Kumar et al. 2504.02507).

A norm is held against the mean and the deviation of those before it, not against a number that was
set before the run: only what stands out is clipped, whatever the scale of the gradients is.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.types import InputError, config


@config
class ZScoreConfig:
    """Norms more than `threshold` deviations above the mean are clipped (0: none); published: 2.5.

    Mean and variance forget by `decay` a step. They are plain ones of the first `warmup` steps, in
    which this clips nothing (`optim.clip` does).
    """

    threshold: float = 0.0
    decay: float = 0.97
    warmup: int = 25

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise InputError(f"optim.zscore.threshold is {self.threshold}; it must be 0 or more")
        if not 0 <= self.decay < 1:
            raise InputError(f"optim.zscore.decay is {self.decay}; it lies in [0, 1)")
        if self.warmup < 2:
            raise InputError(
                f"optim.zscore.warmup is {self.warmup}; it must be 2 steps or more, as one norm "
                f"has no deviation"
            )
        for name, default in (("decay", 0.97), ("warmup", 25)):
            value = getattr(self, name)
            if not self.threshold and value != default:
                raise InputError(
                    f"optim.zscore.{name} is {value}, but optim.zscore.threshold is 0, so nothing "
                    f"comes of it; set the threshold too, or optim.zscore={{}} to have none"
                )


class Norms(NamedTuple):
    """What is known of the norms so far: in how many steps, their mean and variance."""

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def edge(self, zscore: ZScoreConfig) -> float:
        """The largest norm that is left alone; infinite where nothing is clipped.

        So it is as long as all norms are the same: what has no deviation has no outliers.
        """
        if not zscore.threshold or self.steps < zscore.warmup or not self.variance:
            return torch.inf
        return self.mean + zscore.threshold * self.variance**0.5

    def limit(self, zscore: ZScoreConfig, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What a gradient of that norm is clipped to, on its device; infinite where it is not.

        A norm z > k deviations above the mean comes to lie k^2 / z above it: the further out, the
        nearer to the mean (section 3.2, reciprocal clipping).
        """
        edge = self.edge(zscore)
        nearer = self.mean + zscore.threshold**2 * self.variance / (norm - self.mean)
        return torch.where(norm > edge, nearer, torch.inf)

    def after(self, zscore: ZScoreConfig, norm: float) -> "Norms":
        """The statistics with one more norm, as it was before clipping; one that stands out enters
        as the edge. Only finite norms may be given.

        The paper lets it enter as what it was clipped to, which is near the mean: once norms have
        risen for good, the variance dies and every step is clipped. As the edge it widens.
        """
        if not zscore.threshold:
            return self
        if self.steps < zscore.warmup:
            keep = self.steps / (self.steps + 1)
            step = norm - self.mean
            mean = self.mean + (1 - keep) * step
            variance = keep * self.variance + (1 - keep) * step * (norm - mean)
            return Norms(self.steps + 1, mean, variance)
        norm = min(norm, self.edge(zscore))
        mean = zscore.decay * self.mean + (1 - zscore.decay) * norm
        variance = zscore.decay * self.variance + (1 - zscore.decay) * (norm - mean) ** 2
        return Norms(self.steps + 1, mean, variance)
