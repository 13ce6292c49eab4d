"""Cosine restarts whose peaks decay (SGDR, Loshchilov and Hutter 1608.03983, section 3)."""

import math

from pointillist.types import Count, InputError, config


@config
class RestartsConfig:
    """Every `cycle` images the rate falls as half a cosine from a peak to `valley` of that peak.

    The first peak is `optim.lr`, each further one `decay` times the one before; neither peaks nor
    valleys fall below `floor` of `optim.lr`. PixelHDM's 1e-4, 5e-5, x 0.9 and 1e-5 are the
    defaults, which leave the cycle to be set.
    """

    cycle: Count = 0
    valley: float = 0.5
    decay: float = 0.9
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.cycle < 0:
            raise InputError(f"optim.restarts.cycle is {self.cycle}; it must be 0 or more")
        for name in ("valley", "decay", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"optim.restarts.{name} is {getattr(self, name)}; it lies in [0, 1]"
                )

    def share(self, images: int) -> float:
        """The rate as a share of `optim.lr`, so many images behind the warm-up."""
        number, within = divmod(images, self.cycle)
        peak = max(self.decay**number, self.floor)
        valley = max(self.valley * peak, self.floor)
        return valley + (peak - valley) * (1 + math.cos(math.pi * within / self.cycle)) / 2
