"""A penalty on the scales of modulations, PixelHDM's third regulariser of a triple loss.

Published as the sum over pixel blocks, and over both modulations of each, of mean(scale^2), where a
modulation multiplies by 1 + scale; the scales are made anew for every sample, so the penalty is a
number a sample as every term is. Gains of norms, which are weights, are not meant: those are
`optim.weight_decay`'s matter, and are left out there too.
"""

from typing import Any, Literal

from pointillist.layers.gain import Gains
from pointillist.losses.term import check_term
from pointillist.types import InputError, config


@config
class GainConfig:
    """`weight`: published 1e-4. `of`: all modulations, or those of `places` alone, which have a
    scale for every pixel, as published.
    """

    weight: float = 0.0
    of: Literal["all", "places"] = "all"

    def __post_init__(self) -> None:
        check_term(self, "loss.gain")

    def wanted(self) -> Gains | None:
        """What collects the scales of one forward; None where the term has no weight."""
        return Gains(self.of == "places") if self.weight else None

    def check_model(self, gains: Gains | None, model: Any) -> None:
        """InputError where a forward of the model has left no scale that the term looks at."""
        if gains is None or gains.squares:
            return
        what = (
            "modulates nothing by a scale" if self.of == "all" else "has no scale for every pixel"
        )
        other = "loss.gain={}" if self.of == "all" else "loss.gain.of=all, or loss.gain={}"
        raise InputError(
            f"loss.gain.weight is {self.weight:g}, but model {model.config.kind} {what}; set "
            f"{other}"
        )
