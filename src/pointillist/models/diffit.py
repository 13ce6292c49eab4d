"""DiffiT on pixels: a U of convolutions and windowed attention that time steers (2312.02139).

What the paper leaves open is decided so: one skip a stage, concatenated before the first block of
its mirror image, which has a 1x1 convolution around it for the residual; the coarsest stage has
none, for its mirror image follows at once. GELU is exact, LayerNorm has gain and bias.
"""

import math
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.attention import check_heads, zero_
from pointillist.layers.embed import AugmentEmbedding, LabelEmbedding, TimeEmbedding, embed_given
from pointillist.layers.mlp import MLP
from pointillist.layers.time_attention import TimeAttention, TimeBlock
from pointillist.types import Given, InputError, Prediction, Spec, Takes, Time, config

Map = Float[Tensor, "b d h w"]
Resized = Float[Tensor, "b _ _ _"]


@config
class DiffiTConfig:
    """Stage i is `width * multiples[i]` wide and half as large as the one before, rounded up.

    `depth` blocks a stage, down and up alike, and `window` cells an edge: one number, or one a
    stage. A map no larger than its window is attended as a whole. `time_features` numbers of time
    become a token of `time_width`. GroupNorm has `groups` groups, or as many as the greatest
    common divisor with the width. `head_norm`: GroupNorm and Swish before the last convolution.
    `augment_labels`: how many numbers tell how a sample was augmented; 0: the model is not told.
    """

    kind: Literal["diffit"] = "diffit"
    width: int = 128
    multiples: tuple[int, ...] = (1, 2, 2)
    depth: int | tuple[int, ...] = 2
    heads: int = 4
    window: int | tuple[int, ...] = 4
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    groups: int = 32
    down: Literal["strided", "bilinear"] = "strided"
    up: Literal["strided", "bilinear"] = "strided"
    head_norm: bool = True
    time_width: int = 512
    time_features: int = 256
    time_scale: float = 1000.0
    augment_labels: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "groups", "time_width", "time_features"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.multiples or min(self.multiples) < 1:
            raise InputError(
                f"model.multiples is {self.multiples}; give one number of 1 or more a stage"
            )
        for name in ("depth", "window"):
            value = getattr(self, name)
            one = isinstance(value, int)
            if min((value,) if one else value, default=0) < 1:
                raise InputError(f"model.{name} is {value}; it must be 1 or more")
            if not one and len(value) != len(self.multiples):
                raise InputError(
                    f"model.{name} is {value}, but model.multiples has {len(self.multiples)} "
                    f"stages; give one number, or one a stage"
                )
        for name in ("mlp_ratio", "time_scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout is {self.dropout}; it lies in [0, 1)")
        if self.time_features % 2:
            raise InputError(f"model.time_features is {self.time_features}; it must be even")
        if self.augment_labels < 0:
            raise InputError(f"model.augment_labels is {self.augment_labels}; it must be 0 or more")
        for multiple in self.multiples:
            check_heads(self.width * multiple, self.heads, pairs=False)
            if int(self.width * multiple * self.mlp_ratio) < 1:
                raise InputError(
                    f"model.mlp_ratio is {self.mlp_ratio}, which leaves no hidden unit of width "
                    f"{self.width * multiple}; raise it"
                )

    def build(self, spec: Spec) -> "DiffiT":
        if len(spec.size) != 2:
            raise InputError(
                f"model.kind is diffit, which works on pictures, but the data have "
                f"{len(spec.size)} axes of space; set model.kind=dit"
            )
        for window in {window for _, _, window in self.stages()}:
            if window > max(spec.size):
                shown = "x".join(map(str, spec.size))
                raise InputError(
                    f"model.window is {window}, but the data have {shown} cells; set "
                    f"model.window={max(spec.size)} or less"
                )
        return DiffiT(self, spec)

    def stages(self) -> list[tuple[int, int, int]]:
        """Width, blocks and window of every stage, the finest first."""
        n = len(self.multiples)
        depth = (self.depth,) * n if isinstance(self.depth, int) else self.depth
        window = (self.window,) * n if isinstance(self.window, int) else self.window
        widths = [self.width * multiple for multiple in self.multiples]
        return list(zip(widths, depth, window, strict=True))


class Context(NamedTuple):
    """What needs neither the state nor the time: the label and how the sample was augmented."""

    told: Float[Tensor, "b e"] | None


# From stage to stage: half as large, rounded up, and back to the size of the skip.


class StridedDown(nn.Conv2d):
    """A 3x3 convolution at every second cell."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 3, stride=2, padding=1)


class BilinearDown(nn.Conv2d):
    """The mean of 2x2 cells, then a 3x3 convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 3, padding=1)

    def forward(self, x: Map) -> Resized:
        half = [-(-n // 2) for n in x.shape[2:]]
        return super().forward(F.interpolate(x, half, mode="bilinear"))


class StridedUp(nn.ConvTranspose2d):
    """A transposed 4x4 convolution at every second cell."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 4, stride=2, padding=1)

    def forward(self, x: Map, size: tuple[int, int]) -> Resized:  # type: ignore[override]
        return super().forward(x)[..., : size[0], : size[1]]


class BilinearUp(nn.Conv2d):
    """Values between the cells, then a 3x3 convolution."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 3, padding=1)

    def forward(self, x: Map, size: tuple[int, int]) -> Resized:  # type: ignore[override]
        return super().forward(F.interpolate(x, size, mode="bilinear"))


DOWN = {"strided": StridedDown, "bilinear": BilinearDown}
UP = {"strided": StridedUp, "bilinear": BilinearUp}


def group_norm(groups: int, width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(groups, width), width)


class ResBlock(nn.Module):
    """h = conv(Swish(GN(x))), then x + block(h) with every cell of the map a token (Eq. 9-10)."""

    def __init__(self, config: DiffiTConfig, width: int, out: int, window: int) -> None:
        super().__init__()
        self.norm = group_norm(config.groups, width)
        self.conv = nn.Conv2d(width, out, 3, padding=1)
        self.block = TimeBlock(
            TimeAttention(out, config.time_width, config.heads, (window,) * 2, config.dropout),
            MLP(out, int(out * config.mlp_ratio), exact=True),
            nn.LayerNorm,
            config.dropout,
        )
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, bias=False)

    def forward(self, x: Map, c: Float[Tensor, "b e"]) -> Float[Tensor, "b _ h w"]:
        h = self.conv(F.silu(self.norm(x))).float()
        tokens = self.block(rearrange(h, "b d h w -> b h w d"), c)
        return rearrange(tokens, "b h w d -> b d h w") + self.skip(x)


class Stage(nn.ModuleList):
    """Blocks at one size, one after the other."""

    def forward(self, x: Map, c: Float[Tensor, "b e"]) -> Float[Tensor, "b _ h w"]:
        for block in self:
            x = block(x, c)
        return x


class DiffiT(nn.Module):
    """Tokenizer, stages down, the same stages up with what each left behind, head."""

    takes = Takes(axes=(2,))

    def __init__(self, config: DiffiTConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        stages = config.stages()
        widths = [width for width, _, _ in stages]
        steps = list(zip(widths, widths[1:], strict=False))
        self.time = TimeEmbedding(
            config.time_width, config.time_scale, features=config.time_features
        )
        classes, labels = len(spec.classes), config.augment_labels
        self.label = LabelEmbedding(classes, config.time_width) if classes else None
        self.augment = AugmentEmbedding.of(labels, config.time_width)
        self.tokenizer = nn.Conv2d(spec.channels, config.width * config.multiples[0], 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()  # the finest stage first
        for i, (width, depth, window) in enumerate(stages):
            joined = width if i == len(stages) - 1 else 2 * width
            down = (ResBlock(config, width, width, window) for _ in range(depth))
            up = (ResBlock(config, width if j else joined, width, window) for j in range(depth))
            self.encoder.append(Stage(down))
            self.decoder.append(Stage(up))
        self.downs = nn.ModuleList(DOWN[config.down](fine, coarse) for fine, coarse in steps)
        self.ups = nn.ModuleList(UP[config.up](coarse, fine) for fine, coarse in steps)
        normed = (group_norm(config.groups, widths[0]), nn.SiLU()) if config.head_norm else ()
        self.head = nn.Sequential(*normed, nn.Conv2d(widths[0], spec.channels, 3, padding=1))
        self.initialise()

    def initialise(self) -> None:
        """Xavier for linear layers, N(0, 0.02) for embeddings, zero for the last convolution."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        zero_(self.head[-1])

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        return Context(embed_given(self.label, self.augment, given))

    def forward(self, xt: Map, t: Time, given: Given, context: Context | None = None) -> Prediction:
        told = (self.condition(given, tuple(xt.shape[2:])) if context is None else context).told
        c = self.time(t) if told is None else self.time(t) + told

        # Channels last: a map and its tokens are then one layout, and no block copies between them.
        x = self.tokenizer(xt.contiguous(memory_format=torch.channels_last)).float()
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            if i:
                x = self.downs[i - 1](x).float()
            x = stage(x, c)
            skips.append(x)
        for i, stage in reversed(list(enumerate(self.decoder))):
            if i < len(self.ups):
                x = self.ups[i](x, tuple(skips[i].shape[2:])).float()
                x = torch.cat((x, skips[i]), 1)
            x = stage(x, c)
        return Prediction(self.head(x).contiguous())
