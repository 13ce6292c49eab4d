"""Known pixels by a learnt interpolation: a U-Net mends the classical one before a walk begins."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.encoders.encoder import Encoder, Site
from pointillist.encoders.splat import Context, check_scales, finer_fill
from pointillist.layers.attention import zero_
from pointillist.layers.observations import grid_of
from pointillist.layers.patch import patchify
from pointillist.layers.splat import SCALES, splat, splat_channels
from pointillist.layers.unet import GROUPS, LINEAR, UNet
from pointillist.types import Given, InputError, config


@config
class UNetConfig:
    """The features of `layers.splat` through a U-Net (`layers.unet`): `widths` and `depths` of its
    stages, the finest first.

    What comes out is linearly added to the interpolation, which is then the guess that the
    network's answer is added to (`residual`, for networks that predict the picture itself), and,
    patch by patch, to the tokens. A regression is most of a posterior's mean, and costs one forward
    for a whole walk here; the steps are left with what differs between draws, as in CorrDiff
    (Mardani et al., 2309.15214), whose two parts are trained one after the other.
    """

    kind: Literal["unet"] = "unet"
    scales: tuple[float, ...] = SCALES
    widths: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 2, 2)
    residual: bool = True

    def __post_init__(self) -> None:
        check_scales(self.scales)
        if not self.widths or any(width < 1 or width % (2 * GROUPS) for width in self.widths):
            raise InputError(
                f"model.encoder.widths is {list(self.widths)}; give multiples of {2 * GROUPS}"
            )
        if len(self.depths) != len(self.widths) or min(self.depths) < 1:
            raise InputError(
                f"model.encoder.depths is {list(self.depths)}; give {len(self.widths)} numbers of "
                f"1 or more, one for each of model.encoder.widths"
            )

    @property
    def regresses(self) -> bool:
        """Whether the guess is learnt, so that `loss.regression` has something to teach."""
        return self.residual

    def build(self, site: Site) -> "UNetEncoder":
        return UNetEncoder(self, site)


class UNetEncoder(Encoder):
    """At the start the encoder `splat`: what the U-Net adds, and the tokens, are zero."""

    def __init__(self, config: UNetConfig, site: Site) -> None:
        super().__init__()
        self.guesses = config.residual
        self.config, self.channels, self.patch_size = config, site.channels, site.patch_size
        axes, features = len(site.size), splat_channels(site.channels, config.scales)
        self.unet = UNet(axes, features, config.widths, config.depths)
        self.mend = nn.Linear(config.widths[0], site.channels, bias=False)
        cells = site.patch_size**axes
        self.linear = nn.Linear((features + config.widths[0]) * cells, site.width, bias=False)
        self.initialise()

    def initialise(self) -> None:
        for module in self.unet.modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        zero_(self.mend)
        zero_(self.linear)

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
        hidden = self.unet(features)
        tokens = self.linear(patchify(torch.cat((features, hidden), 1), self.patch_size))
        if not self.config.residual:
            return Context(tokens, None)
        added = self.mend(hidden.movedim(1, -1)).movedim(-1, 1).float()
        if asked is not None and asked != size:
            filled = finer_fill(given, self.channels, self.config.scales, size, asked)
            filled = filled.to(device)
            mode = LINEAR[len(size)]
            added = F.interpolate(added, size=asked, mode=mode, align_corners=False)
        return Context(tokens, filled + added)

    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        # The residual stream is float32, under autocast too.
        return torch.add(patches.float(), context.tokens)

    def guess(self, context: Context) -> Float[Tensor, "b c *space"] | None:
        return context.guess
