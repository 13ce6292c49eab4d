"""PixNerd: pixel neural field diffusion (arXiv 2507.23268).

One idea: a transformer on large patches need not draw the pixels of its patches itself. Each of its
tokens writes the weights of a small MLP instead, a neural field that is asked cell by cell, with
the noisy colour of the cell and its place in the patch (`models/neural_field.py`). Nothing ties a
field to the grid of the training: `render` asks it on any finer one.
"""

import math
import re
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.encoders import NoEncoderConfig, Observing, Site, answered
from pointillist.layers.adaln import AdaLNBlock
from pointillist.layers.attention import check_heads, xavier_, zero_
from pointillist.layers.embed import AugmentEmbedding, LabelEmbedding, TimeEmbedding, embed_given
from pointillist.layers.mlp import SwiGLU
from pointillist.layers.offset import mesh, moved
from pointillist.layers.patch import on_grid, patch_grid, patchify, pixels, unpixels
from pointillist.layers.rope import Rotation, rope
from pointillist.layers.text import Text
from pointillist.models.alternation import unalternate
from pointillist.models.neural_field import Code, Coordinates, NeuralField, WeightNorm
from pointillist.types import (
    Coarse,
    Given,
    InputError,
    Prediction,
    Spec,
    State,
    Takes,
    Time,
    config,
)


@config
class PixNerdConfig:
    """Defaults are the published L/16, but for the places of a patch's cells.

    `decoder_width`, `decoder_depth`, `decoder_ratio`: the field is that wide, has that many blocks,
    and each is that many times wider inside. `coordinates`: a cell lies at its centre, or, as
    published, the outer ones on the patch's border. `code`, `bands`: the features of a place
    (`neural_field.code_of`); in the rotary code a patch reaches from 0 to `code_span`.
    `weight_norm`, `final_norm`: published code without all of them exists and the paper found it
    worse. `position_span`: patches lie on [0, span] at any size, with one span for all axes or one
    for each (0: in steps of one; an empty list: from 0 to the number of patches in training).
    `encoder`: how observations reach the patches. `scales`: in training the patches see the state
    at 1/r of its size, r drawn from these, and the field answers at the whole of it; in a share
    `jitter` of the steps the rows and columns of cells in every patch are moved by up to half a
    cell, and the picture is taken there. Both are for sizes beyond the trained one.
    """

    kind: Literal["pixnerd"] = "pixnerd"
    width: int = 1024
    depth: int = 22
    heads: int = 16
    patch_size: int = 16
    mlp_ratio: float = 4.0
    decoder_width: int = 64
    decoder_depth: int = 2
    decoder_ratio: int = 2
    coordinates: Coordinates = "centre"
    code: Code = "dct"
    bands: int = 8
    code_span: float = 16.0
    weight_norm: WeightNorm = "both"
    final_norm: bool = True
    position_span: float | tuple[float, ...] = 16.0
    theta: float = 1e4
    time_scale: float = 1.0
    max_period: float = 10.0
    encoder: Observing = NoEncoderConfig()
    scales: tuple[int, ...] = (1,)
    jitter: float = 0.0
    augment_labels: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size", "decoder_width", "decoder_depth",
                     "decoder_ratio"):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "time_scale", "max_period", "theta"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        check_heads(self.width, self.heads)
        if self.hidden < 1:
            raise InputError(f"model.mlp_ratio is {self.mlp_ratio}, which leaves no hidden unit of "
                             f"width {self.width}; raise it")  # fmt: skip
        far = self.position_span
        if min(far if isinstance(far, tuple) else (far,), default=0) < 0:
            raise InputError(f"model.position_span is {far}; it must be 0 or more")
        if self.bands < 2:
            raise InputError(f"model.bands is {self.bands}; it must be 2 or more")
        if self.code_span <= 0 or self.code == "dct" and self.code_span != 16:
            raise InputError(f"model.code_span is {self.code_span:g}; it is above 0, and 16 unless "
                             f"model.code is rotary")  # fmt: skip
        once = len(set(self.scales)) == len(self.scales)
        if 1 not in self.scales or min(self.scales) < 1 or not once:
            raise InputError(f"model.scales is {list(self.scales)}; give 1, at which the trained "
                             f"size is asked, and others, each once, as [1, 2]")  # fmt: skip
        if not 0 <= self.jitter <= 1:
            raise InputError(f"model.jitter is {self.jitter}; it lies in [0, 1]")

    @property
    def hidden(self) -> int:
        """Width inside of a SwiGLU."""
        return int(int(self.width * self.mlp_ratio) * 2 / 3)

    def build(self, spec: Spec) -> "PixNerd":
        return PixNerd(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    rotation: Rotation
    encoded: Any  # the encoder's own
    text: Text | None = None  # what the text form adds


class PixNerd(nn.Module):
    """Patches through `encoder` and `blocks` to tokens; each token's `field` to the answer."""

    def __init__(self, config: PixNerdConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        c, p, d, axes = config, config.patch_size, config.width, len(spec.size)
        self.trained = patch_grid(spec.size, p)
        self.span = span_of(c.position_span, self.trained)
        for r in c.scales:
            if any(n % r for n in self.trained):
                shown = "x".join(map(str, spec.size))
                raise InputError(f"model.scales has {r}, but 1/{r} of {shown} is no multiple of "
                                 f"the patch size {p}; leave it out")  # fmt: skip
        self.encoder = c.encoder.build(Site(spec.channels, spec.size, p, d, c.heads))
        self.takes = Takes(
            axes=(1, 2, 3), observations=self.encoder.takes, taps=c.depth, renders=c.scales,
            jitter=c.jitter,
        )  # fmt: skip
        self.patch = nn.Linear(spec.channels * p**axes, d)
        self.time = TimeEmbedding(d, c.time_scale, c.max_period)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.augment = AugmentEmbedding.of(config.augment_labels, d)
        self.blocks = nn.ModuleList(self.make_block() for _ in range(c.depth))
        self.scale = nn.Parameter(torch.empty(d)) if max(c.scales) > 1 else None
        seen = spec.channels * (1 + self.encoder.guesses)
        self.field = NeuralField(
            spec.channels, seen, axes, d, c.decoder_width, c.decoder_depth, c.decoder_ratio,
            c.weight_norm, c.final_norm, c.coordinates, c.code, c.bands, c.theta, c.code_span,
        )  # fmt: skip
        self.initialise()

    def make_block(self) -> AdaLNBlock:
        c = self.config
        mlp = SwiGLU(c.width, c.hidden, bias=False)
        return AdaLNBlock(c.width, c.heads, mlp, bias=False)

    def initialise(self) -> None:
        """Xavier for linear layers but those that write the fields, N(0, 0.02) for embeddings;
        zero for modulations, head and scale. The encoder has the last word on its own.
        """
        xavier_(self)
        for embedding in (self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        if self.scale is not None:
            nn.init.zeros_(self.scale)
        zero_(self.field.head, *(block.get_submodule("modulation") for block in self.blocks))
        self.field.initialise()
        self.encoder.initialise()

    def beside(self, c: Float[Tensor, "b d"], context: Context) -> tuple[Any, ...]:
        """What blocks are handed beside their own tokens and places: nothing in this form."""
        return ()

    def condition(
        self, given: Given, size: tuple[int, ...], asked: tuple[int, ...] | None = None
    ) -> Context:
        """`size`: that of the state which the patches see; `asked`: of the answer, if finer."""
        c, device = self.config, self.patch.weight.device
        grid = patch_grid(size, c.patch_size)
        label = embed_given(self.label, self.augment, given)
        turn = rope(grid, self.trained, c.width // c.heads, c.theta, 0, device, self.span)
        return Context(label, turn, self.encoder.condition(given, size, grid, asked))

    def forward(
        self,
        xt: State,
        t: Time,
        given: Given,
        context: Context | None = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        return self.render(xt, t, xt, t, given, context, taps=taps)

    def render(
        self,
        xt: State,
        t: Time,
        coarse: Coarse,
        t_coarse: Time,
        given: Given,
        context: Context | None = None,
        offsets: Float[Tensor, "s e"] | None = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        """The answer for `xt` at time t, by patches that see the same state `coarse`, at its time.

        `coarse` is smaller by a whole factor r, the same along each axis; a patch has m = (r p)^s
        cells then. `offsets`: how far its rows, columns and so on are moved, in cells.
        """
        size, r = tuple(coarse.shape[2:]), times_larger(xt, coarse)
        if context is None:
            context = self.condition(given, size, tuple(xt.shape[2:]))
        edge, hidden = r * self.config.patch_size, []
        early = self.time(t_coarse)
        c = F.silu(early if context.label is None else early + context.label)

        # Patches. The residual streams are float32 under autocast.
        s = self.patch(patchify(coarse, self.config.patch_size)).float()
        s = self.encoder(s, c, context.encoded).float()
        beside = self.beside(c, context)
        for number, block in enumerate(self.blocks, 1):
            s = block(s, c, context.rotation, *beside)
            if number in taps:
                hidden.append(on_grid(s, patch_grid(size, self.config.patch_size)))

        # Cells.
        steer = (early if t is t_coarse else self.time(t))[:, None]
        if self.scale is not None:
            steer = steer + math.log(r) * self.scale
        s = F.silu(s + steer)
        guess = self.encoder.guess(context.encoded)
        if guess is not None:
            guess = enlarged(guess, tuple(xt.shape[2:]))
            guess = guess if offsets is None else moved(guess, offsets)
        jitter = None if offsets is None else mesh(offsets)
        cells = pixels(self.encoder.with_guess(xt, guess), edge, edge)
        value = self.field(cells.flatten(0, 1), s.flatten(0, 1), edge, jitter)
        value = unpixels(value.unflatten(0, cells.shape[:2]), edge, edge, tuple(xt.shape[2:]))
        return answered(value, guess, hidden)


def span_of(span: float | tuple[float, ...], trained: tuple[int, ...]) -> float | tuple[float, ...]:
    """How far the patches of all axes, or of each, reach; InputError where axes are left out."""
    if span == ():
        return tuple(float(n) for n in trained)
    if isinstance(span, tuple) and len(span) != len(trained):
        raise InputError(f"model.position_span is {list(span)}, but there are {len(trained)} axes "
                         f"of space; give one number for each, or one for all")  # fmt: skip
    return span


def times_larger(xt: State, coarse: Coarse) -> int:
    """The whole factor between the edges of both; InputError where there is none."""
    size, small = tuple(xt.shape[2:]), tuple(coarse.shape[2:])
    r = size[0] // small[0]
    if size != tuple(r * n for n in small):
        shown = ("x".join(map(str, n)) for n in (size, small))
        raise InputError("size {} is no whole multiple of the coarse size {}; it must be the same "
                         "along each axis".format(*shown))  # fmt: skip
    return r


def enlarged(picture: Coarse, size: tuple[int, ...]) -> State:
    """Linear interpolation between cell centres; the picture itself where the size is its own."""
    if tuple(picture.shape[2:]) == size:
        return picture
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(picture, size, mode=mode, align_corners=False)


PUBLISHED = (
    (r"s_embedder\.proj\.", "patch."),
    (r"x_embedder\.embedder\.0\.", "field.enter."),
    (r"t_embedder\.mlp\.0\.", "time.up."),
    (r"t_embedder\.mlp\.2\.", "time.out."),
    (r"y_embedder\.embedding_table\.", "label.table."),
    (r"^field_blocks\.", "field.blocks."),
    (r"\.param_generator1\.0\.", ".write."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.adaLN_modulation\.0\.", ".modulation."),
    (r"final_layer\.norm\.", "field.norm."),
    (r"final_layer\.linear\.", "field.head."),
)
# What PixNerDiT's encoders are called there.
ENCODERS = ("patch_hint_proj.", "perceiver.", "point_", "query_coord_embed.", "sfc_", "shared_")


def part_blocks(state: dict[str, Any]) -> dict[str, Any]:
    """Published names with the blocks of the field, which are the last, numbered by themselves."""
    pattern = re.compile(r"blocks\.(\d+)\.(param_generator1\..*|norm\..*)")
    matches = {name: match for name in state if (match := pattern.fullmatch(name))}
    first = min((int(match[1]) for match in matches.values()), default=0)
    return {
        f"field_blocks.{int(matches[name][1]) - first}.{matches[name][2]}"
        if name in matches else name: value
        for name, value in state.items()
    }  # fmt: skip


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published PixNerd, or of PixNerDiT without its encoders, under our names.

    Gate and up of SwiGLU are two layers there (one in PixNerDiT), and rotary pairs of both axes
    alternate.
    """
    named: dict[str, Tensor] = {}
    for name, value in part_blocks(state).items():
        if name.startswith(ENCODERS):
            continue
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value
    unalternate(named)
    for name in list(named):
        stem, mlp, layer = name.partition(".mlp.w")
        if mlp and layer == "1.weight":
            both = (named.pop(name), named.pop(f"{stem}.mlp.w3.weight"))
            named[f"{stem}.mlp.gate_up.weight"] = torch.cat(both)
            named[f"{stem}.mlp.down.weight"] = named.pop(f"{stem}.mlp.w2.weight")
        elif mlp and layer == "12.weight":
            named[f"{stem}.mlp.gate_up.weight"] = named.pop(name)
            named[f"{stem}.mlp.down.weight"] = named.pop(f"{stem}.mlp.w3.weight")
    return named
