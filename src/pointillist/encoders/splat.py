"""Known pixels by classical interpolation: the network starts from it and adds what it lacks."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.encoders.encoder import Encoder, Site
from pointillist.layers.attention import zero_
from pointillist.layers.embed import sincos
from pointillist.layers.observations import grid_of
from pointillist.layers.patch import patch_grid, patchify
from pointillist.layers.splat import SCALES, splat, splat_channels
from pointillist.types import Given, InputError, config


@config
class SplatConfig:
    """`scales` are those of `layers.splat`, in cells, the widest first.

    `noisy_patches`: tokens are added to those of the noisy state; without, the network sees only
    the observation and the place of each patch. `residual`: the network's answer is added to the
    interpolation, for networks that predict the picture itself.
    """

    kind: Literal["splat"] = "splat"
    scales: tuple[float, ...] = SCALES
    noisy_patches: bool = True
    residual: bool = True

    def __post_init__(self) -> None:
        falling = sorted(self.scales, reverse=True) == list(self.scales)
        if not self.scales or not falling or self.scales[-1] <= 0:
            raise InputError(
                f"model.encoder.scales is {list(self.scales)}; give widths in cells, above 0, the "
                f"widest first"
            )

    def build(self, site: Site) -> "SplatEncoder":
        return SplatEncoder(self, site)


class Context(NamedTuple):
    """What was observed, as tokens, and interpolated where the answer is added to that."""

    tokens: Float[Tensor, "b n d"]
    guess: Float[Tensor, "b c *space"] | None


class SplatEncoder(Encoder):
    """Every feature of the interpolation at every cell of a patch, then one linear layer.

    Without bias and at zero, as `layers.hints` has it: observations change no token until that is
    learnt.
    """

    def __init__(self, config: SplatConfig, site: Site) -> None:
        super().__init__()
        self.config, self.channels, self.patch_size = config, site.channels, site.patch_size
        self.width, self.trained = site.width, patch_grid(site.size, site.patch_size)
        cells = site.patch_size ** len(site.size)
        features = splat_channels(site.channels, config.scales)
        self.linear = nn.Linear(features * cells, site.width, bias=False)
        self.initialise()

    def initialise(self) -> None:
        zero_(self.linear)

    def condition(self, given: Given, size: tuple[int, ...], grid: tuple[int, ...]) -> Context:
        device = self.linear.weight.device
        found = grid_of(given, self.channels, size)
        if found is None:  # mid-grey everywhere, and of no density
            zero = torch.zeros(1, self.channels + 1, *size, device=device)
            found = zero[:, :-1], zero[:, -1:]
        seen, density = found
        filled, features = splat(seen, density, self.config.scales)
        tokens = self.linear(patchify(features, self.patch_size))
        if not self.config.noisy_patches:
            tokens = tokens + sincos(grid, self.trained, self.width, device)
        return Context(tokens, filled if self.config.residual else None)

    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        if self.config.noisy_patches:
            return patches + context.tokens
        return context.tokens.to(patches.dtype).expand_as(patches)

    def guess(self, context: Context) -> Float[Tensor, "b c *space"] | None:
        return context.guess
