"""The curve encoder: patches ask the tokens of observed pixels.

Follows PixNerDiT with SFC (github.com/colpark/kevinhelp1, MIT), which has no paper. One idea: only
what is observed becomes tokens (`curve_tokens.py`), so the cost falls with the share observed;
every patch then asks all of them by cross-attention. Two things are otherwise here by default: the
noisy patches are part of the questions, for without them the answer at a hidden pixel cannot depend
on the state at any other; and the tokens know neither state nor time, so they are made once for all
steps.
"""

import re
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.encoders.curve_tokens import CurveTokenizer
from pointillist.encoders.encoder import Encoder, Site
from pointillist.encoders.questions import (
    bands_of,
    check_at_least,
    heads_of,
    observed_share,
    patch_places,
)
from pointillist.layers.attention import zero_
from pointillist.layers.coordinates import Convention, FourierFeatures
from pointillist.layers.cross_attention import CrossBlock, Keys, TokenBlock, inverse_softplus
from pointillist.layers.curve import Curve
from pointillist.types import Given, InputError, config


@config
class CurveConfig:
    """Observed pixels in groups along a space-filling curve, asked by every patch.

    `self_depth` blocks among the tokens, `cross_depth` from patches to tokens; `heads` 0: the
    backbone's. `bands` of the coordinates' code (None: as many as the training grid can tell apart;
    16 as published). `coordinates`: of observed points; `corner` as published, where patches keep
    the centres of cells. `unified_coords`: patches have the code of the pixels. `spatial_bias`:
    patches prefer near tokens. `noisy_patches`: a question holds the noisy patch. `null_token`: a
    learned token that is always there. `time_tokens`: tokens know time and label, and are made at
    every step, as published. `valid_flag`: empty places of a group are told from zeros. `density`:
    a patch is told what share of it is observed.
    """

    kind: Literal["curve"] = "curve"
    curve: Curve = "hilbert"
    group_size: int = 8
    self_depth: int = 2
    cross_depth: int = 2
    heads: int = 0
    mlp_ratio: float = 4.0
    unified_coords: bool = False
    spatial_bias: bool = False
    bands: int | None = None
    coordinates: Convention = "centre"
    coordinate_code: Literal["mlp", "fixed"] = "mlp"
    token_mlp: bool = False
    curve_position: bool = True
    noisy_patches: bool = True
    null_token: bool = True
    time_tokens: bool = False
    valid_flag: bool = True
    density: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, 1, "group_size", "cross_depth", "bands")
        check_at_least(self, 0, "self_depth", "heads")
        if self.mlp_ratio <= 0:
            raise InputError(f"model.encoder.mlp_ratio is {self.mlp_ratio}; it must be above 0")
        if self.unified_coords and self.coordinate_code == "fixed":
            raise InputError(
                "model.encoder.unified_coords is true, but coordinate_code is fixed, which patches "
                "cannot share; set it to mlp"
            )

    def build(self, site: Site) -> "CurveEncoder":
        return CurveEncoder(self, site)


class Context(NamedTuple):
    """Everything of an observation; `keys` are made at every step where tokens know the time."""

    query: Float[Tensor, "_ n d"]
    tokens: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]
    keys: tuple[Keys, ...]
    distance: Float[Tensor, "b n m"] | None
    density: Float[Tensor, "b n d"] | None


class CurveEncoder(Encoder):
    """Tokens from `tokenizer` through `self_blocks`; patches through `cross_blocks`."""

    def __init__(self, config: CurveConfig, site: Site) -> None:
        super().__init__()
        self.config, self.site = config, site
        c, d, heads = config, site.width, heads_of(config.heads, site)
        bands = bands_of(c.bands, site)
        # The published shared code is no wider than the tokens.
        hidden = None if c.coordinate_code == "fixed" else d if c.unified_coords else 0
        self.tokenizer = CurveTokenizer(
            site.channels, d, bands, c.group_size, c.curve, c.coordinates, hidden, c.token_mlp,
            c.curve_position, c.valid_flag,
        )  # fmt: skip
        self.query = None if c.unified_coords else FourierFeatures(bands, d)
        self.null = nn.Parameter(torch.empty(d)) if c.null_token else None
        self.self_blocks = nn.ModuleList(
            TokenBlock(d, heads, c.mlp_ratio) for _ in range(c.self_depth)
        )
        self.cross_blocks = nn.ModuleList(
            CrossBlock(d, heads, c.mlp_ratio, c.spatial_bias) for _ in range(c.cross_depth)
        )
        self.density = nn.Linear(1, d) if c.density else None
        self.initialise()

    def initialise(self) -> None:
        """N(0, 0.02) for the null token; zero for the density and for what attention adds, so that
        observations change nothing until they are learnt.
        """
        zero_(*(block.get_submodule("attention.out") for block in self.cross_blocks))
        if self.density is not None:
            zero_(self.density)
        if self.null is not None:
            nn.init.normal_(self.null, std=0.02)

    def condition(
        self,
        given: Given,
        size: tuple[int, ...],
        grid: tuple[int, ...],
        asked: tuple[int, ...] | None = None,
    ) -> Context:
        c = self.config
        tokens, mask, at = self.tokenizer(given, size)
        where = patch_places(grid, c.coordinates, tokens.device)
        code = self.tokenizer.code if self.query is None else self.query
        assert code is not None
        distance = density = None
        if c.spatial_bias:
            # The usual form, by products, loses the digits of near places.
            distance = torch.cdist(
                where.expand(at.shape[0], -1, -1), at, compute_mode="donot_use_mm_for_euclid_dist"
            )
        if self.null is not None:
            null = self.null.expand(tokens.shape[0], 1, -1)
            tokens = torch.cat((tokens, null), 1)
            if distance is not None:
                # It lies nowhere: as far from a patch as the tokens are on average.
                there = mask[:, None].to(distance.dtype)
                far = (distance * there).sum(2) / there.sum(2).clamp(min=1)
                distance = torch.cat((distance, far[..., None]), 2)
            mask = torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        if self.density is not None:
            density = self.density(observed_share(given, self.site, size, tokens.device)).float()
        keys: tuple[Keys, ...] = ()
        if not c.time_tokens:
            keys = self._keys(tokens, mask)
        return Context(code(where), tokens, mask, keys, distance, density)

    def _keys(self, tokens: Float[Tensor, "b m d"], mask: Bool[Tensor, "_ m"]) -> tuple[Keys, ...]:
        """Tokens that have seen one another, as each cross block wants them."""
        for block in self.self_blocks:
            tokens = block(tokens, mask)
        return tuple(
            block.keys(tokens) for block in self.cross_blocks if isinstance(block, CrossBlock)
        )

    def forward(
        self, patches: Float[Tensor, "b n d"], c: Float[Tensor, "b d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        keys = context.keys or self._keys(context.tokens + c[:, None], context.mask)
        x = (context.query + c[:, None]).float()
        if self.config.noisy_patches:
            x = x + patches
        for block, known in zip(self.cross_blocks, keys, strict=True):
            x = block(x, known, context.mask, context.distance)
        return x if context.density is None else x + context.density


PUBLISHED = (
    (r"^sfc_tokenizer\.coord_embed\.mlp\.0\.", "tokenizer.code.up."),
    (r"^sfc_tokenizer\.coord_embed\.mlp\.2\.", "tokenizer.code.down."),
    (r"^sfc_tokenizer\.token_proj\.", "tokenizer.project."),
    (r"^sfc_tokenizer\.", "tokenizer."),
    (r"^shared_coord_embed\.mlp\.0\.", "tokenizer.code.up."),
    (r"^shared_coord_embed\.mlp\.2\.", "tokenizer.code.down."),
    (r"^query_coord_embed\.proj\.", "query.out."),
    (r"^patch_hint_proj\.", "density."),
    (r"^sfc_self\.", "self_blocks."),
    (r"^sfc_cross\.blocks\.", "cross_blocks."),
    (r"\.attn\.out_proj\.", ".attention.out."),
    (r"\.q_norm\.", ".norm_q."),
    (r"\.kv_norm\.", ".norm_kv."),
    (r"\.mlp_norm\.", ".norm_mlp."),
    (r"\.mlp\.w12\.", ".mlp.gate_up."),
    (r"\.mlp\.w3\.", ".mlp.down."),
    (r"\.mlp\.0\.", ".mlp.up."),
    (r"\.mlp\.2\.", ".mlp.down."),
    (r"\.spatial_scale$", ".bias.scale"),
)
OURS = ("tokenizer.", "query.", "density.", "self_blocks.", "cross_blocks.")


def encoder_from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published curve encoder under our names; others are passed over.

    Three things lie otherwise there. Coordinates are (x, y), ours go along the axes of the array,
    so the features of the two change places. Scales of distance are free numbers, ours the softplus
    of one: InputError where one is not above 0. The offset beside them adds the same to all scores
    of a query, which softmax forgets, and is dropped.
    """
    named: dict[str, Tensor] = {}
    for published, value in state.items():
        name = published
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        if not name.startswith(OURS) or name.endswith(".spatial_offset"):
            continue
        if name in ("tokenizer.code.up.weight", "query.out.weight"):
            value = _other_axis_first(value)
        elif name.endswith(".bias.scale"):
            if bool((value <= 0).any()):
                raise InputError(
                    f"{published} is {float(value.min()):g} for a head, which prefers far tokens; "
                    f"only scales above 0 can be taken over"
                )
            value = inverse_softplus(value)
        elif ".attn.in_proj_" in name:
            part = name.rpartition("_")[2]
            stem = name.replace(f".attn.in_proj_{part}", ".attention.")
            q, k, v = value.chunk(3)
            named[f"{stem}q.{part}"] = q
            name, value = f"{stem}kv.{part}", torch.cat((k, v))
        named[name] = value
    return named


def _other_axis_first(weight: Tensor) -> Tensor:
    """Columns of the Fourier features of x, then of y, in the order y, x."""
    x, y = weight.chunk(2, 1)
    return torch.cat((y, x), 1)
