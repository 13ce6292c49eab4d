"""Known pixels by classical interpolation: the network starts from it and adds what it lacks."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.encoders.encoder import Encoder, Site
from pointillist.layers.attention import zero_
from pointillist.layers.observations import grid_of
from pointillist.layers.patch import patchify
from pointillist.layers.splat import SCALES, finer_scales, splat, splat_channels
from pointillist.types import Given, InputError, config


@config
class SplatConfig:
    """`scales` are those of `layers.splat`, in cells, the widest first.

    `noisy_patches`: tokens are added to those of the noisy state, which otherwise the blocks do not
    see: one learnt token takes their place. `residual`: the network's answer is added to the
    interpolation, for networks that predict the picture itself.
    """

    kind: Literal["splat"] = "splat"
    scales: tuple[float, ...] = SCALES
    noisy_patches: bool = True
    residual: bool = True

    def __post_init__(self) -> None:
        check_scales(self.scales)

    def build(self, site: Site) -> "SplatEncoder":
        return SplatEncoder(self, site)


def check_scales(scales: tuple[float, ...]) -> None:
    """InputError unless there are widths of windows, the widest first."""
    if not scales or list(scales) != sorted(scales, reverse=True) or scales[-1] <= 0:
        raise InputError(
            f"model.encoder.scales is {list(scales)}; give widths in cells, above 0, the widest "
            f"first"
        )


class Context(NamedTuple):
    """What was observed, as tokens, and interpolated where the answer is added to that."""

    tokens: Float[Tensor, "_ n d"]
    guess: Float[Tensor, "_ c *space"] | None


def finer_fill(
    given: Given, channels: int, scales: tuple[float, ...], size: tuple[int, ...],
    asked: tuple[int, ...],
) -> Float[Tensor, "b c *space"]:  # fmt: skip
    """The interpolation on a finer grid than that of the patches, with wider windows too."""
    found = grid_of(given, channels, asked)
    if found is None:
        return torch.zeros(1, channels, *asked)
    return splat(*found, finer_scales(scales, asked[0] / size[0])).filled


class SplatEncoder(Encoder):
    """Every feature of the interpolation at every cell of a patch, then one linear layer.

    Without bias and at zero, as `layers.hints` has it: observations change no token until that is
    learnt.
    """

    def __init__(self, config: SplatConfig, site: Site) -> None:
        super().__init__()
        self.guesses = config.residual
        self.config, self.channels, self.patch_size = config, site.channels, site.patch_size
        cells = site.patch_size ** len(site.size)
        features = splat_channels(site.channels, config.scales)
        self.linear = nn.Linear(features * cells, site.width, bias=False)
        self.query = None if config.noisy_patches else nn.Parameter(torch.empty(site.width))
        self.initialise()

    def initialise(self) -> None:
        zero_(self.linear)
        if self.query is not None:
            nn.init.normal_(self.query, std=0.02)

    def condition(
        self,
        given: Given,
        size: tuple[int, ...],
        grid: tuple[int, ...],
        asked: tuple[int, ...] | None = None,
    ) -> Context:
        device = self.linear.weight.device
        found = grid_of(given, self.channels, size)
        if found is None:
            found = torch.zeros(1, self.channels, *size), torch.zeros(1, 1, *size)
        seen, density = (v.to(device) for v in found)
        filled, features = splat(seen, density, self.config.scales)
        tokens = self.linear(patchify(features, self.patch_size))
        if not self.config.residual:
            return Context(tokens, None)
        if asked is not None and asked != size:
            filled = finer_fill(given, self.channels, self.config.scales, size, asked).to(device)
        return Context(tokens, filled)

    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        # The residual stream is float32, under autocast too.
        if self.query is None:
            return torch.add(patches.float(), context.tokens)
        return torch.add(self.query.float(), context.tokens).expand_as(patches)

    def guess(self, context: Context) -> Float[Tensor, "b c *space"] | None:
        return context.guess
