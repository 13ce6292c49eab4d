"""How the weight of guidance goes over time, as a share of what it is at most.

Sources: Gao et al. 2303.14389 and Hatamizadeh et al. 2312.02139 (power-cosine).
"""

import math
from typing import Annotated, Literal

from pointillist.types import InputError, by_kind, config


@config
class ConstantSchedule:
    """The same weight at every time."""

    kind: Literal["constant"] = "constant"

    def share(self, t: float) -> float:
        return 1.0


@config
class LinearSchedule:
    """From `start` at the noise to `end` at the data, straight."""

    kind: Literal["linear"] = "linear"
    start: float = 0.0
    end: float = 1.0

    def share(self, t: float) -> float:
        return self.start + (self.end - self.start) * t


@config
class CosineSchedule:
    """From `start` at the noise to `end` at the data along half a cosine, level at both ends."""

    kind: Literal["cosine"] = "cosine"
    start: float = 0.0
    end: float = 1.0

    def share(self, t: float) -> float:
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * t)) / 2


@config
class PowerCosineSchedule:
    """(1 - cos(pi t^power)) / 2: near 0 for long, 1 at the data (MDT, DiffiT: power 4)."""

    kind: Literal["power_cosine"] = "power_cosine"
    power: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise InputError(f"guidance.schedule.power is {self.power:g}; it must be above 0")

    def share(self, t: float) -> float:
        return (1 - math.cos(math.pi * t**self.power)) / 2


@config
class ListSchedule:
    """Factors at evenly spaced times, the first at the noise, the last at the data, joined up."""

    kind: Literal["list"] = "list"
    factors: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise InputError(
                f"guidance.schedule.factors is {list(self.factors)}; give two or more, the first "
                f"for t = 0 and the last for t = 1"
            )

    def share(self, t: float) -> float:
        last = len(self.factors) - 2
        place = t * (last + 1)
        i = min(max(int(place), 0), last)
        return self.factors[i] + (self.factors[i + 1] - self.factors[i]) * (place - i)


Schedule = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | PowerCosineSchedule | ListSchedule, by_kind
]
