"""The second pathway of PixelDiT (arXiv 2511.20645, section 3.2): every pixel is a token.

A pixel has a small width of its own (16), far too many tokens for attention. So the pixels of a
patch are compacted into one token of the model's width, attention works among those, and its answer
is spread over the pixels again. Shift, scale and gate of every pixel come from its patch's token:
one linear layer, D -> p^2 x 6 x D_pix, makes them anew in every block. They are by far the largest
activation of the model, and cheap to make: backward makes them again rather than keeping them.
"""

import contextvars
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex64, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pointillist.layers.attention import SelfAttention
from pointillist.layers.fused import Fused
from pointillist.layers.gain import gain
from pointillist.layers.mlp import MLP
from pointillist.layers.norm import RMSNorm

Pixels = Float[Tensor, "b n m e"]  # patches, cells of a patch, pixel width
Hint = Float[Tensor, "_ n m e"]  # one row where nothing is known
Tokens = Float[Tensor, "b n d"]
Rotation = Complex64[Tensor, "k half"]  # one row for each compacted block, k of them


def plainly(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return function(*arguments)


def again(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call `function`; backward calls it again instead of keeping what it made on the way."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    # Backward on CUDA runs in threads that know nothing of who asked for the scales.
    inside = functools.partial(contextvars.copy_context().run, function)
    return checkpoint(inside, *arguments, use_reentrant=False, preserve_rng_state=False)


class Modulation(nn.Module):
    """`parts` tensors (shift, scale, gate) for every pixel of a patch, or for the patch as a whole.

    `cells` is the number of pixels with parameters of their own: p^axes, or 1 for the patch-wise
    form of the paper's ablation (FID 3.50 against 2.36).
    """

    def __init__(self, width: int, pixel_width: int, cells: int, parts: int) -> None:
        super().__init__()
        self.shape = (parts, cells, pixel_width)
        self.linear = Fused(width, parts * cells * pixel_width, parts)

    def forward(self, s: Tokens, hint: Hint | None) -> tuple[Tensor, ...]:
        made = self.linear(s).unflatten(-1, self.shape).unbind(2)
        if hint is None:
            return made
        return tuple(m + h for m, h in zip(made, hint.chunk(len(made), -1), strict=True))


class HintModulation(nn.Module):
    """Known values and their mask to what is added to every block's modulation, pixel by pixel."""

    def __init__(self, channels: int, pixel_width: int, enter: int, leave: int) -> None:
        super().__init__()
        self.up = nn.Linear(channels + 1, pixel_width)
        self.down = nn.Linear(pixel_width, pixel_width)
        self.enter = nn.Linear(pixel_width, enter * pixel_width) if enter else None
        self.leave = nn.Linear(pixel_width, leave * pixel_width)

    def forward(self, hints: Float[Tensor, "b n m c"]) -> "PixelHint":
        features = self.down(F.silu(self.up(hints)))
        if torch.is_grad_enabled():
            return PixelHint(self, features)
        enter = None if self.enter is None else self.enter(features)
        return PixelHint(self, features, enter, self.leave(features))


class PixelHint(NamedTuple):
    """What hints add to the modulations, which is the same in every block and at every step.

    Without gradients it is made once; in training each block makes it inside of what backward makes
    again, so that it is never kept.
    """

    layer: HintModulation
    features: Hint
    made_enter: Tensor | None = None
    made_leave: Tensor | None = None

    def enter(self) -> Tensor:
        assert self.layer.enter is not None
        return self.layer.enter(self.features) if self.made_enter is None else self.made_enter

    def leave(self) -> Tensor:
        return self.layer.leave(self.features) if self.made_leave is None else self.made_leave


class PixelBlock(nn.Module):
    """x += gate1 * spread(attention(compact(modulate(norm(x))))), then x += gate2 * MLP(...).

    With `post`, the answers are modulated instead of the questions: x += f(norm(x)) (1 + scale) +
    shift, four tensors and no gate (published against loss spikes).
    `attention_width` and `heads` are those of a compacted block, `width` the steering patch's.
    Without `attention` the first branch is gate1 * modulate(norm(x)): no pixel sees another.
    """

    def __init__(
        self,
        width: int,
        pixel_width: int,
        cells: int,
        block_cells: int,
        attention_width: int,
        heads: int,
        patchwise: bool,
        post: bool,
        attention: bool,
        mlp_ratio: float,
        bias: bool,
        exact: bool,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.post, self.recompute = post, recompute
        self.block_cells, self.pixel_width = block_cells, pixel_width
        own = 1 if patchwise else cells
        self.enter = None if post else Modulation(width, pixel_width, own, 2)
        self.leave = Modulation(width, pixel_width, own, 4)
        self.norm1 = RMSNorm(pixel_width)
        self.norm2 = RMSNorm(pixel_width)
        self.compact = self.attention = self.spread = None
        if attention:
            self.compact = nn.Linear(block_cells * pixel_width, attention_width)
            self.attention = SelfAttention(attention_width, heads, qk_norm=True, bias=bias)
            self.spread = nn.Linear(attention_width, block_cells * pixel_width)
        self.mlp = MLP(pixel_width, int(pixel_width * mlp_ratio), exact)

    def forward(
        self,
        x: Pixels,
        s: Tokens,
        rotation: Rotation | None,
        hint: PixelHint | None,
    ) -> Pixels:
        call = again if self.recompute else plainly
        h = call(self._question, x, s, hint)
        if self.attention is not None:
            h = self.attention(h, rotation)
        return call(self._answer, x, h, s, hint)

    def _question(self, x: Pixels, s: Tokens, hint: PixelHint | None) -> Tensor:
        h = self.norm1(x)
        if self.enter is not None:
            shift, scale = self.enter(s, None if hint is None else hint.enter())
            h = torch.addcmul(shift, h, gain(scale))
        if self.compact is None:
            return h
        # Cells of one block lie together, so a block is a row.
        return self.compact(h.reshape(h.shape[0], -1, self.block_cells * self.pixel_width))

    def _answer(self, x: Pixels, h: Tensor, s: Tokens, hint: PixelHint | None) -> Pixels:
        if self.spread is not None:
            h = self.spread(h).reshape(x.shape)
        made = self.leave(s, None if hint is None else hint.leave())
        if self.post:
            scale1, shift1, scale2, shift2 = made
            x = x + torch.addcmul(shift1, h, gain(scale1))
            return x + torch.addcmul(shift2, self.mlp(self.norm2(x)), gain(scale2))
        gate1, shift, scale, gate2 = made
        x = torch.addcmul(x, gate1, h)
        h = self.mlp(torch.addcmul(shift, self.norm2(x), gain(scale)))
        return torch.addcmul(x, gate2, h)
