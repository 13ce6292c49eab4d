"""Dropout whose mask is a function of seed, sample and layer, as every other draw is.

Torch's own takes its mask from a generator with a state: another split of the batch, or a forward
that is computed a second time in the backward pass, would drop other entries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.draws import Draw

_DRAW: ContextVar[Draw | None] = ContextVar("draw", default=None)


@contextmanager
def dropping(draw: Draw) -> Iterator[None]:
    """Inside, the samples of `draw` are those that networks see, in that order."""
    token = _DRAW.set(draw)
    try:
        yield
    finally:
        _DRAW.reset(token)


class Dropout(nn.Module):
    """In training, zero with probability p and 1/(1 - p) times as large otherwise.

    The first axis of what comes in is the samples, or several rows of each in turn (windows).
    `purpose` tells layers of a network apart; `name_dropouts` sets it. Outside of `dropping` masks
    are torch's.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.purpose = p, "dropout"

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if not self.training or not self.p:
            return x
        draw = _DRAW.get()
        if draw is None or x.is_meta:
            return F.dropout(x, self.p)
        # 16 bits decide on an entry: a probability to 1.5e-5, at half the price of 32.
        count = x.numel() // draw.index.shape[0]
        words = draw.bits(self.purpose, (-(-count // 2),)).to(x.device)
        halves = torch.stack((words & 0xFFFF, words >> 16), -1)
        keep = halves.flatten(1)[:, :count].reshape(x.shape) >= round(self.p * 2**16)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def name_dropouts(model: nn.Module) -> None:
    """Give every dropout its module's name for a purpose, so that no two drop alike."""
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.purpose = f"dropout {name}"
