"""PixelDiT: two pathways, one of patches and one of pixels (arXiv 2511.20645).

One idea: a transformer on large patches finds what is where, and its tokens then steer a second,
narrow transformer in which every pixel is a token of its own (`models/pixel_path.py`). The noise of
a single pixel is carried by the second, so predicting the velocity works at patch 16, which a plain
linear head on patches cannot do.
"""

import re
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.encoders import NoEncoderConfig, Observing, Site, answered
from pointillist.layers.adaln import AdaLNBlock
from pointillist.layers.attention import check_heads, xavier_, zero_
from pointillist.layers.embed import (
    AugmentEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    embed_given,
    sincos,
)
from pointillist.layers.mlp import MLP, SwiGLU
from pointillist.layers.norm import RMSNorm
from pointillist.layers.observations import hint_channels
from pointillist.layers.patch import on_grid, patch_grid, patchify, pixels, unpixels
from pointillist.layers.rope import Rotation, rope
from pointillist.models.alternation import unalternate
from pointillist.models.pixel_path import HintModulation, PixelBlock, PixelHint, again
from pointillist.types import Given, InputError, Prediction, Spec, State, Takes, Time, config


@config
class PixelDiTConfig:
    """Defaults are the published B/16.

    `modulation`: shift, scale and gate for every pixel, or one for all pixels of a patch.
    `compaction`: edge of the block of pixels that is one token of the pixel attention (0: the whole
    patch); that attention is `pixel_attention_width` wide with `pixel_heads` (0: as the patches').
    `condition_time`, `condition_silu`: the pixels are steered by SiLU(s + time), as released, or
    without the one or the other. `pixel_attention` false leaves compaction and attention out of the
    pixel blocks; `pixel_rope` and `pixel_place` leave out the places of blocks and pixels.
    `rope_span`: patches lie on [0, span] at any size (0: in steps of one, as in JiT). `place` adds
    a fixed code to the patches, `context_tokens` join the patches at block `context_start`; both
    are JiT's. `encoder`: how observations enter the patches, if they do; their values and mask then
    steer the pixels too.
    `recompute`: backward makes the pixels' modulation again instead of keeping it.
    """

    kind: Literal["pixeldit"] = "pixeldit"
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16
    pixel_width: int = 16
    pixel_depth: int = 2
    pixel_gelu: Literal["exact", "tanh"] = "exact"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    mlp_ratio: float = 4.0
    bias: bool = False
    modulation: Literal["pixel", "patch"] = "pixel"
    post_modulation: bool = False
    compaction: int = 0
    pixel_attention: bool = True
    pixel_attention_width: int = 0
    pixel_heads: int = 0
    pixel_rope: bool = True
    pixel_place: bool = True
    condition_time: bool = True
    condition_silu: bool = True
    place: bool = False
    rope_span: float = 16.0
    theta: float = 1e4
    context_tokens: int = 0
    context_start: int = 4
    encoder: Observing = NoEncoderConfig()
    time_scale: float = 1.0
    max_period: float = 10.0
    augment_labels: int = 0
    recompute: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size", "pixel_width", "pixel_depth"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "time_scale", "max_period", "theta"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        check_heads(self.width, self.heads)
        if (
            int(int(self.width * self.mlp_ratio) * 2 / 3) < 1
            or int(self.pixel_width * self.mlp_ratio) < 1
        ):
            raise InputError(
                f"model.mlp_ratio is {self.mlp_ratio}, which leaves no hidden unit of width "
                f"{self.width} or pixel_width {self.pixel_width}; raise it"
            )
        for name in ("rope_span", "context_tokens", "pixel_attention_width", "pixel_heads"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.context_tokens and not 0 <= self.context_start < self.depth:
            raise InputError(
                f"model.context_start is {self.context_start}, but there are {self.depth} blocks; "
                f"it lies in [0, {self.depth})"
            )
        if self.compaction < 0 or self.patch_size % self.block:
            raise InputError(
                f"model.compaction is {self.compaction}; it must divide model.patch_size "
                f"{self.patch_size} (0: the whole patch)"
            )
        for name in ("compaction", "pixel_attention_width", "pixel_heads"):
            if not self.pixel_attention and getattr(self, name):
                raise InputError(
                    f"model.{name} is {getattr(self, name)}, but model.pixel_attention is false; "
                    f"set it to 0"
                )
        width, heads = self.among_pixels
        if width % heads or width // heads % 2:
            raise InputError(
                f"model.pixel_attention_width {width} is no even number for each of {heads} heads; "
                f"set it or model.pixel_heads"
            )

    @property
    def block(self) -> int:
        """Edge of what is compacted into one token."""
        return self.compaction or self.patch_size

    @property
    def among_pixels(self) -> tuple[int, int]:
        """Width and heads of the attention among compacted blocks."""
        return self.pixel_attention_width or self.width, self.pixel_heads or self.heads

    def build(self, spec: Spec) -> "PixelDiT":
        return PixelDiT(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    tokens: Float[Tensor, "b m d"] | None
    place: Float[Tensor, "n d"] | None
    rotation: Rotation
    rotation_with_tokens: Rotation
    pixel_place: Float[Tensor, "_ n m e"] | None
    pixel_rotation: Rotation | None
    observed: Any  # the encoder's own
    pixel_hint: PixelHint | None
    beside: Any = None  # what the text form adds


def modulations(blocks: nn.Module) -> list[nn.Module]:
    """The layers that make shifts, scales and gates in there."""
    return [m for name, m in blocks.named_modules() if name.endswith("modulation")]


def mlp_of(c: PixelDiTConfig) -> nn.Module:
    """What follows the attention of a patch block."""
    hidden = int(c.width * c.mlp_ratio)
    if c.mlp == "gelu":
        return MLP(c.width, hidden, exact=True)
    return SwiGLU(c.width, int(hidden * 2 / 3), bias=c.bias)


class PixelDiT(nn.Module):
    """Patches through `blocks` to s; pixels, steered by s, through `pixel_blocks` to the answer."""

    def __init__(self, config: PixelDiTConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        c, p, d, e = config, config.patch_size, config.width, config.pixel_width
        axes, channels = len(spec.size), spec.channels
        self.encoder = c.encoder.build(Site(channels, spec.size, p, d, c.heads))
        self.takes = Takes(axes=(1, 2, 3), observations=self.encoder.takes, taps=c.depth)
        self.trained = patch_grid(spec.size, p)
        cells = p**axes
        self.patch = nn.Linear(channels * cells, d)
        self.time = TimeEmbedding(d, c.time_scale, c.max_period)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.augment = AugmentEmbedding.of(config.augment_labels, d)
        self.token_place = (
            nn.Parameter(torch.empty(c.context_tokens, d)) if c.context_tokens else None
        )
        self.blocks = self.make_blocks()
        self.pixel = nn.Linear(channels * (1 + self.encoder.guesses), e)
        self.pixel_blocks = nn.ModuleList(
            PixelBlock(
                d, e, cells, c.block**axes, *c.among_pixels, patchwise=c.modulation == "patch",
                post=c.post_modulation, attention=c.pixel_attention, mlp_ratio=c.mlp_ratio,
                bias=c.bias, exact=c.pixel_gelu == "exact", recompute=c.recompute,
            )
            for _ in range(c.pixel_depth)
        )  # fmt: skip
        self.hint_pixel = None
        if self.encoder.takes == "any":
            self.hint_pixel = HintModulation(channels, e, *(0, 4) if c.post_modulation else (2, 4))
        self.norm = RMSNorm(e)
        self.head = nn.Linear(e, channels)
        self.initialise()

    def make_blocks(self) -> nn.ModuleList:
        """The blocks of the patches."""
        c = self.config
        return nn.ModuleList(AdaLNBlock(c.width, c.heads, mlp_of(c), bias=c.bias)
                             for _ in range(c.depth))  # fmt: skip

    def step(
        self, i: int, s: Tensor, beside: Any, steer: Tensor, rotation: Rotation
    ) -> tuple[Float[Tensor, "b n d"], Any]:
        """Patches behind block i, and what goes along beside them: nothing in this form."""
        return self.blocks[i](s, steer, rotation), beside

    def initialise(self) -> None:
        """Xavier for linear layers, N(0, 0.02) for embeddings; zero for modulations, those of the
        pixels' hints too, and the head.
        """
        xavier_(self)
        for embedding in (self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        if self.token_place is not None:
            nn.init.normal_(self.token_place, std=0.02)
        zero_(self.head, *modulations(self.blocks))
        for block in self.pixel_blocks:
            zero_(*(m for m in (block.enter, block.leave) if isinstance(m, nn.Module)))
        if self.hint_pixel is not None:
            pixel = self.hint_pixel
            zero_(*(m for m in (pixel.enter, pixel.leave) if m is not None))
        self.encoder.initialise()

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        c, device = self.config, self.head.weight.device
        grid = patch_grid(size, c.patch_size)
        tokens = pixel_hint = pixel_place = pixel_turn = None
        label = embed_given(self.label, None, given)
        if self.token_place is not None:
            tokens = self.token_place[None]
            if label is not None:
                tokens = tokens + label[:, None]
        label = embed_given(self.label, self.augment, given)  # the tokens are of the class alone
        if self.hint_pixel is not None:
            hints = hint_channels(given, self.spec.channels, size, device)
            pixel_hint = self.hint_pixel(pixels(hints, c.patch_size, c.block))
        place = sincos(grid, self.trained, c.width, device) if c.place else None
        head = c.width // c.heads
        turn = rope(grid, self.trained, head, c.theta, c.context_tokens, device, c.rope_span)
        if c.pixel_place:
            code = sincos(size, self.spec.size, c.pixel_width, device)
            code = code.T.reshape(1, c.pixel_width, *size)
            pixel_place = pixels(code, c.patch_size, c.block)
        if c.pixel_rope and c.pixel_attention:
            width, heads = c.among_pixels
            pixel_turn = self._block_rotation(size, width // heads, device)
        return Context(
            label, tokens, place, turn[c.context_tokens :], turn, pixel_place, pixel_turn,
            self.encoder.condition(given, size, grid), pixel_hint,
        )  # fmt: skip

    def _block_rotation(self, size: tuple[int, ...], head: int, device: torch.device) -> Rotation:
        """Places of the compacted blocks, in the order in which the patches hold them."""
        c = self.config
        grid, trained = (tuple(n // c.block for n in s) for s in (size, self.spec.size))
        turn = rope(grid, trained, head, c.theta, 0, device, c.rope_span)
        if c.block == c.patch_size:
            return turn
        turn = rearrange(turn, "n half -> 1 half n").unflatten(-1, grid)
        return pixels(turn, c.patch_size // c.block, 1).flatten(0, 2)

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
        time = self.time(t)
        steer = F.silu(time if context.label is None else time + context.label)

        # Patches. Both residual streams are float32 under autocast, with or without a place added.
        s = self.patch(patchify(xt, c.patch_size)).float()
        s = self.encoder(s, steer, context.observed)
        if context.place is not None:
            s = s + context.place
        rotation, beside = context.rotation, context.beside
        for i in range(c.depth):
            if context.tokens is not None and i == c.context_start:
                s = torch.cat((context.tokens.expand(s.shape[0], -1, -1), s), 1)
                rotation = context.rotation_with_tokens
            s, beside = self.step(i, s, beside, steer, rotation)
            if i + 1 in taps:
                hidden.append(on_grid(s, patch_grid(size, c.patch_size)))
        if context.tokens is not None:
            s = s[:, context.tokens.shape[1] :]
        if c.condition_time:
            s = s + time[:, None]
        if c.condition_silu:
            s = F.silu(s)

        # Pixels.
        guess = self.encoder.guess(context.observed)
        seen = self.encoder.with_guess(xt, guess)
        x = self.pixel(pixels(seen, c.patch_size, c.block)).float()
        if context.pixel_place is not None:
            x = x + context.pixel_place
        for block in self.pixel_blocks:
            x = block(x, s, context.pixel_rotation, context.pixel_hint)
        x = again(self._last, x) if c.recompute else self._last(x)
        value = unpixels(x, c.patch_size, c.block, size)
        return answered(value, guess, hidden)

    def _last(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


PUBLISHED = (
    (r"s_embedder\.proj\.", "patch."),
    (r"pixel_embedder\.proj\.", "pixel."),
    (r"t_embedder\.mlp\.0\.", "time.up."),
    (r"t_embedder\.mlp\.2\.", "time.out."),
    (r"y_embedder\.embedding_table\.", "label.table."),
    (r"^patch_blocks\.", "blocks."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.w2\.", ".mlp.down."),
    (r"\.mlp\.fc1\.", ".mlp.up."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
    (r"\.compress_to_attn\.", ".compact."),
    (r"\.expand_from_attn\.", ".spread."),
    (r"\.adaLN_modulation\.0\.", ".modulation."),
    (r"final_layer\.norm\.", "norm."),
    (r"final_layer\.linear\.", "head."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published class-conditional PixelDiT under our names.

    Three things lie otherwise there: gate and up of SwiGLU are two layers; the modulation's rows
    are ordered (pixel, part, channel), here (part, pixel, channel), and in two layers; rotary pairs
    of both axes alternate, x first, where here each axis has its own half of the head.
    """
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value
    unalternate(named)
    for name in list(named):
        if ".mlp.w1." in name:
            up = named.pop(name.replace(".w1.", ".w3."))
            named[name.replace(".w1.", ".gate_up.")] = torch.cat((named.pop(name), up))
        elif name.startswith("pixel_blocks.") and ".modulation." in name:
            cells = named["patch.weight"].shape[1] // named["pixel.weight"].shape[1]
            rows = named.pop(name).unflatten(0, (cells, -1, named["head.weight"].shape[1]))
            rows = rows.transpose(0, 1)  # (part, pixel, channel, ...)
            split = 2 if rows.shape[0] == 6 else 0  # post-modulation has no questions to modulate
            for layer, part in (("enter", rows[:split]), ("leave", rows[split:])):
                if part.shape[0]:
                    named[name.replace("modulation", f"{layer}.linear")] = part.flatten(0, 2)
    return named
