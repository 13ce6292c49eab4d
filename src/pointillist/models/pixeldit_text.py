"""PixelDiT that reads captions (arXiv 2511.20645): its text-to-image form.

Patches and text are two streams with weights of their own, which meet in the attention: one softmax
over the keys of both (as in MM-DiT, 2403.03206). Time modulates both. The pixels are those of
`models/pixeldit.py`, steered by the patches alone.
"""

import re
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.layers.adaln import AdaLNBlock
from pointillist.layers.attend import attend, first_keys
from pointillist.layers.attention import xavier_, zero_
from pointillist.layers.cross_attention import Keys, split_keys
from pointillist.layers.fused import Fused
from pointillist.layers.norm import RMSNorm, modulated_norm
from pointillist.layers.rope import Rotation, rope, rotate
from pointillist.layers.text import TextEmbedding, words_of
from pointillist.models import pixeldit
from pointillist.models.alternation import alternated
from pointillist.models.pixeldit import mlp_of, modulations
from pointillist.types import Given, InputError, Spec, config


@config
class PixelDiTTextConfig(pixeldit.PixelDiTConfig):
    """Fields of `pixeldit`, and how text is read; sizes are the published ones.

    `text_rope`: tokens of the text turn with their place in it, by frequencies of `text_theta`, in
    the attention. Where `attend_padding`, no mask hides the padding of a caption, as in published
    training.
    """

    kind: Literal["pixeldit_text"] = "pixeldit_text"  # type: ignore[assignment]
    width: int = 1536
    depth: int = 14
    heads: int = 24
    pixel_attention_width: int = 1152
    pixel_heads: int = 16
    text_rope: bool = True
    text_theta: float = 1e4
    attend_padding: bool = False

    def __post_init__(self) -> None:
        pixeldit.PixelDiTConfig.__post_init__(self)
        if self.text_theta <= 0:
            raise InputError(f"model.text_theta is {self.text_theta}; it must be above 0")

    def build(self, spec: Spec) -> "PixelDiTText":
        return PixelDiTText(self, spec)


class Stream(NamedTuple):
    """The text beside the patches."""

    tokens: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"] | None
    rotation: Rotation | None


class JointBlock(nn.Module):
    """Two `AdaLNBlock`s, whose queries see the keys of both."""

    def __init__(self, c: PixelDiTTextConfig) -> None:
        super().__init__()
        self.patches, self.text = (
            AdaLNBlock(c.width, c.heads, mlp_of(c), bias=c.bias) for _ in range(2)
        )

    def forward(
        self, s: Float[Tensor, "b n d"], text: Stream, c: Float[Tensor, "b d"], rotation: Rotation
    ) -> tuple[Float[Tensor, "b n d"], Stream]:
        asked, of_patches = self.patches.enter(s, c)
        told, of_text = self.text.enter(text.tokens, c)
        both = zip(
            self.text.attention.split(told, text.rotation),
            self.patches.attention.split(asked, rotation),
            strict=True,
        )
        q, k, v = (torch.cat(pair, 2) for pair in both)
        mixed = attend(q, k, v, first_keys(text.mask, k.shape[2]))
        read, seen = mixed.split((told.shape[1], asked.shape[1]), 2)
        s = self.patches.leave(s, self.patches.attention.join(seen), of_patches)
        y = self.text.leave(text.tokens, self.text.attention.join(read), of_text)
        return s, text._replace(tokens=y)


class TextKeys(nn.Module):
    """What the last block needs of the text: its keys and values."""

    def __init__(self, c: PixelDiTTextConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm = RMSNorm(c.width)
        self.modulation = Fused(c.width, 2 * c.width, parts=2)
        self.kv = Fused(c.width, 2 * c.width, parts=2, bias=c.bias)
        self.k_norm = RMSNorm(c.width // c.heads)

    def forward(self, text: Stream, c: Float[Tensor, "b d"]) -> Keys:
        shift, scale = self.modulation(c).chunk(2, -1)
        keys = split_keys(self.kv(modulated_norm(self.norm, text.tokens, shift, scale)), self.heads)
        k = self.k_norm(keys.k)
        return keys._replace(k=k if text.rotation is None else rotate(k, text.rotation))


class LastBlock(nn.Module):
    """An `AdaLNBlock` that sees keys of the text, of which no block asks anything any more."""

    def __init__(self, c: PixelDiTTextConfig) -> None:
        super().__init__()
        self.patches = AdaLNBlock(c.width, c.heads, mlp_of(c), bias=c.bias)
        self.text = TextKeys(c)

    def forward(
        self, s: Float[Tensor, "b n d"], text: Stream, c: Float[Tensor, "b d"], rotation: Rotation
    ) -> Float[Tensor, "b n d"]:
        return self.patches(s, c, rotation, self.text(text, c), text.mask)


class PixelDiTText(pixeldit.PixelDiT):
    """PixelDiT with `text` beside the patches, in `blocks` and the one in `last`."""

    config: PixelDiTTextConfig

    def __init__(self, config: PixelDiTTextConfig, spec: Spec) -> None:
        words, c = words_of(spec, config.kind), config
        pixeldit.PixelDiT.__init__(self, config, spec)
        self.takes = self.takes._replace(text=True)
        self.text = TextEmbedding(words, c.width, c.kind, c.attend_padding)
        self.last = nn.ModuleList((LastBlock(c),))
        self.text.initialise()
        xavier_(self.last)
        zero_(*modulations(self.last))

    def make_blocks(self) -> nn.ModuleList:
        return nn.ModuleList(JointBlock(self.config) for _ in range(self.config.depth - 1))

    def condition(self, given: Given, size: tuple[int, ...]) -> pixeldit.Context:
        context = pixeldit.PixelDiT.condition(self, given, size)
        tokens, mask = self.text(given)
        turn = self._text_rotation(tokens.shape[1], len(size)) if self.config.text_rope else None
        return context._replace(beside=Stream(tokens, mask, turn))

    def _text_rotation(self, length: int, axes: int) -> Rotation:
        """Places 0, 1, ... of the tokens. A pair turns about as fast as it does in the patches,
        whose pairs lie by axes and fall in frequency within each.
        """
        c, grid = self.config, (length,)
        turn = rope(grid, grid, c.width // c.heads, c.text_theta, 0, self.head.weight.device)
        return turn[:, alternated(turn.shape[1], axes)]

    def step(
        self, i: int, s: Tensor, beside: Any, steer: Tensor, rotation: Rotation
    ) -> tuple[Float[Tensor, "b n d"], Any]:
        if i == len(self.blocks):
            return self.last[0](s, beside, steer, rotation), beside
        return self.blocks[i](s, beside, steer, rotation)


PUBLISHED = (
    (r"^y_embedder\.proj\.", "text.project."),
    (r"^y_embedder\.norm\.", "text.norm."),
    (r"^y_pos_embedding$", "text.place"),
    (r"^(\w+_blocks\.\d+)\.(.*)_(?:x|img)(\d?)\.", r"\1.patches.\2\3."),
    (r"^(\w+_blocks\.\d+)\.(.*)_(?:y|txt)(\d?)\.", r"\1.text.\2\3."),
    (r"^last_blocks\.", "last."),
)


def part_last(state: dict[str, Any]) -> dict[str, Any]:
    """Published names without their wrapper's; the last block, which leaves its text, apart."""
    bare = {name.removeprefix("core."): value for name, value in state.items()
            if not name.startswith("_repa_projector.")}  # fmt: skip
    numbers = [int(m[1]) for m in (re.match(r"patch_blocks\.(\d+)\.", name) for name in bare) if m]
    last = f"patch_blocks.{max(numbers, default=0)}."
    return {re.sub(rf"^{re.escape(last)}", "last_blocks.0.", name): value
            for name, value in bare.items()}  # fmt: skip


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published text-to-image PixelDiT, with its last block apart, under our names.

    They lie as in the class form. There the last block's text asks and answers too, to no end.
    """
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value[0] if name == "text.place" else value
    named = pixeldit.from_published(named)
    stem = "last.0.text."
    whole = {name.removeprefix(stem): named.pop(name) for name in list(named)
             if name.startswith(stem)}  # fmt: skip
    for name, value in whole.items():
        width = value.shape[-1]
        if name == "norm1.weight":
            named[f"{stem}norm.weight"] = value
        elif name == "attention.k_norm.weight":
            named[f"{stem}k_norm.weight"] = value
        elif name == "attention.qkv.weight":
            named[f"{stem}kv.weight"] = value[width:]
        elif name.startswith("modulation."):
            named[f"{stem}{name}"] = value[: value.shape[0] // 3]
    return named
