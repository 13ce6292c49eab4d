"""Moving averages of the weights, several at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EMA:
    """One float32 average of all parameters for every decay.

    With `warmup` the k-th update uses min(decay, (1 + k)/(10 + k)), so that a run of a few hundred
    steps is not dominated by its initial weights.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float], warmup: bool = True) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.warmup, self.updates = warmup, 0
        self.averages: dict[float, list[Tensor]] = {
            decay: [p.detach().float().clone() for p in model.parameters()] for decay in decays
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        current = [p.detach() for p in model.parameters()]
        for decay, average in self.averages.items():
            k = self.updates
            now = min(decay, (1 + k) / (10 + k)) if self.warmup else decay
            torch._foreach_lerp_(average, current, 1 - now)
        self.updates += 1

    def state(self, decay: float) -> dict[str, Tensor]:
        return dict(zip(self.names, self.averages[decay], strict=True))

    @torch.no_grad()
    def load(self, decay: float, state: dict[str, Tensor]) -> None:
        for name, average in zip(self.names, self.averages[decay], strict=True):
            average.copy_(state[name])
