"""The Perceiver encoder: observed points through a few latents to the patches.

Perceiver IO (Jaegle et al. 2107.14795) on points: however many are observed, `latents` vectors look
at them once, so what follows costs the same for every share. The latents know neither state nor
time and are made once for all steps.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.encoders.encoder import Encoder, Site
from pointillist.encoders.questions import (
    bands_of,
    check_at_least,
    heads_of,
    observed_share,
    patch_places,
)
from pointillist.layers.attention import zero_
from pointillist.layers.coordinates import Convention, FourierFeatures, place
from pointillist.layers.cross_attention import CrossBlock, Keys, TokenBlock
from pointillist.layers.observations import points_of
from pointillist.types import Given, InputError, config


@config
class PerceiverConfig:
    """Observed points, learned latents that look at them, and patches that ask the latents.

    Each of `cross_depth` looks at the points, with `cross_heads` heads, is followed by `self_depth`
    blocks among the latents; `heads` of these and of the questions, 0 being the backbone's. `bands`
    of the coordinates' code (None: as many as the training grid can tell apart); `coordinates` of
    points. `noisy_patches`: a question holds the noisy patch. `density`: a patch is told what share
    of it is observed.
    """

    kind: Literal["perceiver"] = "perceiver"
    latents: int = 64
    cross_depth: int = 1
    self_depth: int = 2
    cross_heads: int = 1
    heads: int = 0
    mlp_ratio: float = 4.0
    bands: int | None = None
    coordinates: Convention = "centre"
    noisy_patches: bool = True
    density: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, 1, "latents", "cross_depth", "cross_heads", "bands")
        check_at_least(self, 0, "self_depth", "heads")
        if self.mlp_ratio <= 0:
            raise InputError(f"model.encoder.mlp_ratio is {self.mlp_ratio}; it must be above 0")

    def build(self, site: Site) -> "PerceiverEncoder":
        return PerceiverEncoder(self, site)


class Context(NamedTuple):
    """What the patches ask, and of what."""

    query: Float[Tensor, "_ n d"]
    keys: Keys
    density: Float[Tensor, "b n d"] | None


class Round(nn.Module):
    """The latents look at the points, then at one another."""

    def __init__(
        self, width: int, looks: int, heads: int, self_depth: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.look = CrossBlock(width, looks, mlp_ratio)
        self.blocks = nn.ModuleList(TokenBlock(width, heads, mlp_ratio) for _ in range(self_depth))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        points: Float[Tensor, "b m d"],
        mask: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b n d"]:
        x = self.look(x, self.look.keys(points), mask)
        for block in self.blocks:
            x = block(x)
        return x


class PerceiverEncoder(Encoder):
    """Points into `latents`, by rounds of a look at the points and thoughts about it."""

    def __init__(self, config: PerceiverConfig, site: Site) -> None:
        super().__init__()
        self.config, self.site = config, site
        c, d, heads = config, site.width, heads_of(config.heads, site)
        bands = bands_of(c.bands, site)
        self.value = nn.Linear(site.channels, d)
        self.place = FourierFeatures(bands, d)
        self.query = FourierFeatures(bands, d)
        self.latents = nn.Parameter(torch.empty(c.latents, d))
        looks = heads_of(c.cross_heads, site, "cross_heads")
        self.rounds = nn.ModuleList(
            Round(d, looks, heads, c.self_depth, c.mlp_ratio) for _ in range(c.cross_depth)
        )
        self.ask = CrossBlock(d, heads, c.mlp_ratio)
        self.density = nn.Linear(1, d) if c.density else None
        self.initialise()

    def initialise(self) -> None:
        """N(0, 0.02) for the latents; zero for the density and for what the patches get."""
        nn.init.normal_(self.latents, std=0.02)
        zero_(self.ask.attention.out)
        if self.density is not None:
            zero_(self.density)

    def condition(
        self,
        given: Given,
        size: tuple[int, ...],
        grid: tuple[int, ...],
        asked: tuple[int, ...] | None = None,
    ) -> Context:
        c, device = self.config, self.latents.device
        latents = self._think(given, size)
        query = self.query(patch_places(grid, c.coordinates, device))
        density = None
        if self.density is not None:
            density = self.density(observed_share(given, self.site, size, device)).float()
        return Context(query, self.ask.keys(latents), density)

    def _think(self, given: Given, size: tuple[int, ...]) -> Float[Tensor, "b n d"]:
        """The latents after all rounds; with nothing observed they only think."""
        found = points_of(given, self.site.channels)
        if found is None:
            points = self.latents.new_zeros(1, 1, self.latents.shape[1])
            mask = torch.zeros(1, 1, dtype=torch.bool, device=points.device)
        else:
            at, value, valid = found
            points = self.value(value.mT) + self.place(place(at, size, self.config.coordinates))
            mask = valid[:, 0]
        x = self.latents.expand(points.shape[0], -1, -1)
        for part in self.rounds:
            x = part(x, points, mask)
        return x

    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        x = (context.query + c[:, None]).float()
        if self.config.noisy_patches:
            x = x + patches
        x = self.ask(x, context.keys)
        return x if context.density is None else x + context.density
