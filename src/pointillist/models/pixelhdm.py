"""PixelHDM: text and patches in one sequence, then a pathway of pixels (yetrtyog-creator/PixelHDM).

One idea: the two pathways of PixelDiT (arXiv 2511.20645) for captions on a home machine. The tokens
of a frozen encoder stand before the patches and both attend to all (as in Lumina-Image 2.0), with
four queries to a key and a gate on every head's answer; the caption as a whole steers the pixels.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.encoders import NoEncoderConfig, Observing, Site, answered
from pointillist.layers.attention import check_heads
from pointillist.layers.embed import (
    AugmentEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    embed_given,
    sincos,
)
from pointillist.layers.grouped_attention import (
    Gate,
    GateActivation,
    GroupedAttention,
    check_groups,
)
from pointillist.layers.mrope import Rotations, check_mrope, mrope, mrope_dims
from pointillist.layers.norm import RMSNorm
from pointillist.layers.patch import on_grid, patch_grid, patchify, pixels, unpixels
from pointillist.layers.text import pooled_of, text_of
from pointillist.models.pixel_path import again
from pointillist.models.pixelhdm_blocks import (
    HDMPixelBlock,
    PatchBlock,
    PixelModulation,
    start_gates,
    strength_of,
)
from pointillist.types import Given, InputError, Prediction, Spec, State, Takes, Time, config


@config
class PixelHDMConfig:
    """Defaults are the published sizes, with its faults mended (docs/pixelhdm.md).

    `bottleneck`: width to which a patch is reduced before it is embedded (0: (patch/2)^axes), with
    `bottleneck_silu` as published, without linear as in JiT. `gate`: a number a head or an entry on
    the attention's answer. `rope_dims`: entries of a head that turn with sequence, rows, columns
    ((): a quarter, and equal shares). `depth_scale`, `pixel_depth_scale`: k of the factor
    1/sqrt(k L) on every branch of L blocks (0: none). `modulation`: of pixels by one linear layer,
    by one for the whole patch, or as published in two factors. `pixel_place`: a fixed code of a
    pixel's place in the picture. `text_projection`: captions' features are normalised and brought
    to the model's width; without, they enter as they are. Each gain is the size of the layers it
    names at the start, in units of Xavier's: `modulation_gain` and `output_gain` 0 make a new
    network answer zero; gates start at `gate_start`.
    """

    kind: Literal["pixelhdm"] = "pixelhdm"
    width: int = 1024
    depth: int = 16
    heads: int = 16
    kv_heads: int = 4
    patch_size: int = 16
    bottleneck: int = 0
    bottleneck_silu: bool = False
    pixel_width: int = 16
    pixel_depth: int = 4
    mlp_ratio: float = 3.0
    gate: Gate = "headwise"
    gate_activation: GateActivation = "sigmoid"
    gate_bias: bool = False
    rope_dims: tuple[int, ...] = ()
    theta: float = 1e4
    depth_scale: float = 2.0
    pixel_depth_scale: float = 1.0
    modulation: PixelModulation = "pixel"
    pixel_place: bool = True
    text_projection: bool = True
    modulation_gain: float = 0.0
    gate_start: float = 0.0
    spread_gain: float = 0.1
    output_gain: float = 0.0
    encoder: Observing = NoEncoderConfig()
    time_scale: float = 1000.0
    max_period: float = 1e4
    time_features: int = 256
    augment_labels: int = 0
    recompute: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size", "pixel_width", "pixel_depth"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "time_scale", "max_period", "theta"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        for name in ("bottleneck", "depth_scale", "pixel_depth_scale", "modulation_gain",
                     "spread_gain", "output_gain"):  # fmt: skip
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.time_features < 2 or self.time_features % 2:
            raise InputError(f"model.time_features is {self.time_features}; it must be even, and 2 "
                             f"or more")  # fmt: skip
        check_heads(self.width, self.heads)
        check_groups(self.heads, self.kv_heads)
        if min(self.hidden, self.pixel_hidden) < 1:
            raise InputError(f"model.mlp_ratio is {self.mlp_ratio}, which leaves no hidden unit of "
                             f"width {self.width} or pixel_width {self.pixel_width}; raise "
                             f"it")  # fmt: skip
        if self.gate == "none" and (self.gate_bias or self.gate_activation != "sigmoid"):
            raise InputError("model.gate is none, but model.gate_bias or model.gate_activation is "
                             "set; leave them out")  # fmt: skip

    @property
    def hidden(self) -> int:
        """Width inside of a SwiGLU of the patches."""
        return int(self.width * self.mlp_ratio)

    @property
    def pixel_hidden(self) -> int:
        """Width inside of a SwiGLU of the pixels."""
        return int(self.pixel_width * self.mlp_ratio)

    def reduced(self, axes: int) -> int:
        """Width of the bottleneck of a patch with so many axes."""
        return self.bottleneck or max(1, self.patch_size // 2) ** axes

    def dims(self, axes: int) -> tuple[int, ...]:
        """Shares of a head for the sequence and for each axis; InputError where they do not fit."""
        head = self.width // self.heads
        if self.rope_dims:
            check_mrope(self.rope_dims, head, axes)
            return self.rope_dims
        if head // 2 < axes + 1:
            raise InputError(f"model.heads {self.heads} leaves heads of {head}, which have no pair "
                             f"to turn for each of {axes + 1} axes; lower it")  # fmt: skip
        return mrope_dims(head, axes)

    def build(self, spec: Spec) -> "PixelHDM":
        return PixelHDM(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    text: Float[Tensor, "b l d"] | None
    pooled: Float[Tensor, "b d"] | None
    mask: Bool[Tensor, "b n"] | None  # of the whole sequence
    rotation: Rotations
    pixel_rotation: Rotations
    pixel_place: Float[Tensor, "_ n m e"] | None
    observed: Any  # the encoder's own


class Reading(nn.Module):
    """Features of a frozen encoder, brought to size one and to the model's width.

    Encoders differ by a factor of hundreds in the size of their features, and what steers the
    pixels is a sum in which a caption must not drown: hence the norm, of the features alone.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(words, eps=1e-12)  # small features are features too
        self.linear = nn.Linear(words, width)

    def initialise(self) -> None:
        nn.init.normal_(self.linear.weight, std=self.linear.in_features**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


class PixelHDM(nn.Module):
    """Captions and patches through `blocks` to s; pixels, steered by s, through `pixel_blocks`."""

    def __init__(self, config: PixelHDMConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        c, p, d, e = config, config.patch_size, config.width, config.pixel_width
        axes, channels, words = len(spec.size), spec.channels, spec.words
        cells = p**axes
        c.dims(axes)  # refused at once where they do not fit
        self.encoder = c.encoder.build(Site(channels, spec.size, p, d, c.heads))
        self.takes = Takes(
            axes=(1, 2, 3), observations=self.encoder.takes, taps=c.depth, text=words is not None
        )
        self.trained = patch_grid(spec.size, p)
        self.reduce = nn.Linear(channels * cells, c.reduced(axes), bias=False)
        self.between = nn.SiLU() if c.bottleneck_silu else nn.Identity()
        self.patch = nn.Linear(c.reduced(axes), d, bias=False)
        self.time = TimeEmbedding(d, c.time_scale, c.max_period, c.time_features)
        # A caption says what a label says.
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.augment = AugmentEmbedding.of(c.augment_labels, d)
        self.text: nn.Module = nn.Identity()
        self.pooled: nn.Module = nn.Identity()
        if words is not None and c.text_projection:
            self.text, self.pooled = Reading(words.width, d), Reading(words.width, d)
        elif words is not None and words.width != d:
            raise InputError(f"model.text_projection is false, but captions' features are "
                             f"{words.width} wide and model.width is {d}; set it to "
                             f"true")  # fmt: skip

        def attention() -> GroupedAttention:
            return GroupedAttention(d, c.heads, c.kv_heads, c.gate, c.gate_activation, c.gate_bias)

        strength = strength_of(c.depth, c.depth_scale)
        self.blocks = nn.ModuleList(
            PatchBlock(d, attention(), c.hidden, strength) for _ in range(c.depth)
        )
        self.pixel = nn.Linear(channels * (1 + self.encoder.guesses), e)
        strength = strength_of(c.pixel_depth, c.pixel_depth_scale)
        self.pixel_blocks = nn.ModuleList(
            HDMPixelBlock(d, e, cells, attention(), c.pixel_hidden, c.modulation, strength,
                          c.recompute)
            for _ in range(c.pixel_depth)
        )  # fmt: skip
        self.norm = RMSNorm(e)
        self.head = nn.Linear(e, channels)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for linear layers, times the gain of the configuration where it names one;
        N(0, 0.02) for embeddings, N(0, 1/width) for captions, zero for gates of attention.
        """
        c = self.config
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Reading):
                module.initialise()
            if isinstance(module, GroupedAttention) and module.gate is not None:
                nn.init.zeros_(module.gate.weight)
            if isinstance(module, PatchBlock):
                nn.init.xavier_uniform_(module.modulation.weight, c.modulation_gain)
                start_gates(module.modulation, (2, 5), c.gate_start)
            if isinstance(module, HDMPixelBlock):
                module.steering.initialise(c.modulation_gain, c.gate_start)
                nn.init.xavier_uniform_(module.spread.weight, c.spread_gain)
        nn.init.xavier_uniform_(self.head.weight, c.output_gain)
        self.encoder.initialise()

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        c, device = self.config, self.head.weight.device
        grid, dims = patch_grid(size, c.patch_size), c.dims(len(size))
        text, pooled, mask = self._read(given)
        length = 0 if text is None else text.shape[1]
        turn = mrope(grid, dims, c.theta, length, mask, device)
        if mask is not None:
            seen = mask.new_ones(mask.shape[0], turn.shape[-2] - length)
            mask = torch.cat((mask, seen), 1)
        place = None
        if c.pixel_place:
            # In steps of one, as patches are: a pixel's place is the same in pictures of any shape.
            place = pixels(self._places(size, device), c.patch_size, c.patch_size)
        return Context(
            embed_given(self.label, self.augment, given), text, pooled, mask, turn,
            mrope(grid, dims, c.theta, device=device), place,
            self.encoder.condition(given, size, grid),
        )  # fmt: skip

    def _places(self, size: tuple[int, ...], device: torch.device) -> Float[Tensor, "1 e *space"]:
        """`sincos` of every pixel, out of one small table an axis: those of whole pictures, kept
        for each bucket, would fill gigabytes.
        """
        axes, e = len(size), self.config.pixel_width
        share = e // (2 * axes) * 2
        parts = [
            sincos((size[i],), (size[i],), share, device).T
            .reshape(share, *(size[i] if j == i else 1 for j in range(axes))).expand(share, *size)
            for i in reversed(range(axes))
        ]  # fmt: skip
        rest = torch.zeros(e - share * axes, *size, device=device)
        return torch.cat((*parts, rest))[None]

    def _read(self, given: Given) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """A caption's tokens, its pooled vector, and where there is a token; None without any."""
        if self.spec.words is None:
            return None, None, None
        text = self.text(text_of(given, self.spec.words, self.config.kind)).float()
        if given.text_mask is not None:  # nothing that stands in the padding counts
            text = text.masked_fill(~given.text_mask[..., None], 0.0)
        pooled = pooled_of(given, self.spec.words, self.config.kind)
        pooled = None if pooled is None else self.pooled(pooled).float()
        return text, pooled, given.text_mask

    def forward(
        self,
        xt: State,
        t: Time,
        given: Given,
        context: Context | None = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        size, c, hidden = tuple(xt.shape[2:]), self.config, []
        context = self.condition(given, size) if context is None else context
        grid = patch_grid(size, c.patch_size)
        time = self.time(t)
        steer = nn.functional.silu(time if context.label is None else time + context.label)

        # Text and patches. The residual streams are float32 under autocast.
        s = self.patch(self.between(self.reduce(patchify(xt, c.patch_size)))).float()
        s = self.encoder(s, steer, context.observed)
        patches = s.shape[1]
        if context.text is not None:
            s = torch.cat((context.text.expand(s.shape[0], -1, -1), s), 1)
        for number, block in enumerate(self.blocks, 1):
            s = block(s, steer, context.rotation, context.mask)
            if number in taps:
                hidden.append(on_grid(s, grid))
        s = s[:, -patches:] + time[:, None]
        for told in (context.pooled, context.label):
            if told is not None:
                s = s + told[:, None]

        # Pixels.
        guess = self.encoder.guess(context.observed)
        seen = self.encoder.with_guess(xt, guess)
        x = self.pixel(pixels(seen, c.patch_size, c.patch_size)).float()
        if context.pixel_place is not None:
            x = x + context.pixel_place
        for block in self.pixel_blocks:
            x = block(x, s, context.pixel_rotation)
        x = again(self._last, x) if c.recompute else self._last(x)
        value = unpixels(x, c.patch_size, c.patch_size, size)
        return answered(value, guess, hidden)

    def _last(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))
