"""The scales of modulations, seen by a loss that would keep them small.

A modulation multiplies by 1 + scale, where the scale is made anew for every sample (adaLN). Models
make that sum by `gain` and know of no loss; a loss that wants the scales asks for them by `gains`,
as dropout is told of the samples (`layers/dropout.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

_GAINS: ContextVar["Gains | None"] = ContextVar("gains", default=None)


class Gains:
    """Mean squares of the scales of one forward, for every sample.

    With `places` only of those that differ from place to place, as a pixel's from its neighbour's.
    """

    def __init__(self, places: bool = False) -> None:
        self.places, self.open = places, True
        self.squares: list[Tensor] = []

    def add(self, scale: Float[Tensor, "b *n d"]) -> None:
        if self.places and scale.dim() < 3:
            return
        square = scale.float().square().flatten(1).mean(1)
        # A block that backward computes again comes here again, and is asked for the same tensors.
        if self.open:
            self.squares.append(square)

    def sum(self) -> Float[Tensor, " b"] | None:
        """Summed over all modulations, None where there were none; what comes later is no more."""
        self.open = False
        found, self.squares = self.squares, []
        return torch.stack(found).sum(0) if found else None


@contextmanager
def gains(wanted: Gains | None) -> Iterator[None]:
    """Inside, every scale goes to `wanted`, if there is one."""
    token = _GAINS.set(wanted)
    try:
        yield
    finally:
        _GAINS.reset(token)


def note(scale: Float[Tensor, "b *n d"]) -> None:
    """Show a scale to whoever wants them, where gradients are on."""
    wanted = _GAINS.get()
    if wanted is not None and torch.is_grad_enabled():
        wanted.add(scale)


def gain(scale: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
    """1 + scale, what a modulation multiplies by."""
    note(scale)
    return 1 + scale
