"""Times of training: how often each time of a path is drawn."""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import InputError, Time, by_kind, config


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
