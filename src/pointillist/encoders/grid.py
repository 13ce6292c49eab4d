"""Observations as further channels of the patches, on the grid of the state itself."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.encoders.encoder import Encoder, Site
from pointillist.layers.attention import zero_
from pointillist.layers.hints import HintPatches
from pointillist.types import Given, config


@config
class GridConfig:
    """Every patch has its own observed values and their mask; it meets others in the blocks."""

    kind: Literal["grid"] = "grid"

    def build(self, site: Site) -> "GridEncoder":
        return GridEncoder(site)


class GridEncoder(Encoder):
    """Noisy patch plus a linear layer on the observed values and the mask of the patch.

    It is the same as more input channels of the patch embedding, but it need not be computed again
    at every step, and weights published without observations keep their names. It starts at zero:
    observations change nothing until they are learnt.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.hint = HintPatches(site.channels, len(site.size), site.patch_size, site.width)

    def initialise(self) -> None:
        zero_(self.hint)

    def condition(
        self,
        given: Given,
        size: tuple[int, ...],
        grid: tuple[int, ...],
        asked: tuple[int, ...] | None = None,
    ) -> Float[Tensor, "_ n d"]:
        return self.hint(self.hint.channels_of(given, size))

    def forward(
        self,
        patches: Float[Tensor, "b n d"],
        c: Float[Tensor, "b d"],
        context: Float[Tensor, "_ n d"],
    ) -> Float[Tensor, "b n d"]:
        # The residual stream is float32, under autocast too.
        return torch.add(patches.float(), context)
