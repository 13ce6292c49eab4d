"""PixNerd that reads captions (arXiv 2507.23268, section 4): its text-to-image form.

A few blocks refine the caption's tokens among themselves; then every block's patches attend to them
as they attend to one another, by one softmax. Patches turn with their places, text does not. All
else, the neural fields too, is `models/pixnerd.py`.
"""

import re
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.layers.adaln import AdaLNBlock
from pointillist.layers.attention import xavier_, zero_
from pointillist.layers.cross_attention import split_keys
from pointillist.layers.fused import Fused
from pointillist.layers.mlp import SwiGLU
from pointillist.layers.rope import Rotation
from pointillist.layers.text import TextEmbedding, words_of
from pointillist.models import pixnerd
from pointillist.models.alternation import unalternate_keys
from pointillist.types import Given, InputError, Spec, config


@config
class PixNerdTextConfig(pixnerd.PixNerdConfig):
    """Fields of `pixnerd`, and how text is read; sizes are the published XXL/16.

    `text_depth` blocks refine the text. Where `attend_padding`, no mask hides the padding of a
    caption, as in published training. The published field is the plainer one that the paper found
    worse: `code: rotary`, `weight_norm: first`, `final_norm: false`.
    """

    kind: Literal["pixnerd_text"] = "pixnerd_text"  # type: ignore[assignment]
    width: int = 1536
    depth: int = 16
    heads: int = 24
    position_span: float | tuple[float, ...] = ()
    text_depth: int = 4
    attend_padding: bool = False

    def __post_init__(self) -> None:
        pixnerd.PixNerdConfig.__post_init__(self)
        if self.text_depth < 0:
            raise InputError(f"model.text_depth is {self.text_depth}; it must be 0 or more")

    def build(self, spec: Spec) -> "PixNerdText":
        return PixNerdText(self, spec)


class TextualBlock(AdaLNBlock):
    """An `AdaLNBlock` whose tokens attend to text as well; one norm is that of all keys."""

    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        AdaLNBlock.__init__(self, width, heads, mlp, bias=False)
        self.text = Fused(width, 2 * width, parts=2, bias=False)

    def forward(  # type: ignore[override]
        self,
        x: Float[Tensor, "b n d"],
        c: Float[Tensor, "b d"],
        rotation: Rotation | None,
        text: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b n d"]:
        keys = split_keys(self.text(text), self.attention.heads)
        keys = keys._replace(k=self.attention.k_norm(keys.k))
        return AdaLNBlock.forward(self, x, c, rotation, keys, mask)


class PixNerdText(pixnerd.PixNerd):
    """PixNerd whose blocks attend to `text`, which `text_blocks` have refined."""

    config: PixNerdTextConfig

    def __init__(self, config: PixNerdTextConfig, spec: Spec) -> None:
        words, c = words_of(spec, config.kind), config
        pixnerd.PixNerd.__init__(self, config, spec)
        self.takes = self.takes._replace(text=True)
        self.text = TextEmbedding(words, c.width, c.kind, c.attend_padding)
        self.text_blocks = nn.ModuleList(
            pixnerd.PixNerd.make_block(self) for _ in range(c.text_depth)
        )
        self.text.initialise()
        xavier_(self.text_blocks)
        zero_(*(block.get_submodule("modulation") for block in self.text_blocks))

    def make_block(self) -> AdaLNBlock:
        c = self.config
        return TextualBlock(c.width, c.heads, SwiGLU(c.width, c.hidden, bias=False))

    def condition(
        self, given: Given, size: tuple[int, ...], asked: tuple[int, ...] | None = None
    ) -> pixnerd.Context:
        context = pixnerd.PixNerd.condition(self, given, size, asked)
        return context._replace(text=self.text(given))

    def beside(self, c: Float[Tensor, "b d"], context: pixnerd.Context) -> tuple[Any, ...]:
        """The refined text, made at every step: time modulates the blocks that refine it."""
        assert context.text is not None
        y, mask = context.text
        # A caption without a token refines its padding, at which no patch looks.
        refinable = None if mask is None else mask | ~mask.any(1, keepdim=True)
        for block in self.text_blocks:
            y = block(y, c, None, None, refinable)
        return y, mask


PUBLISHED = (
    (r"^text_refine_blocks\.", "text_blocks."),
    (r"^y_embedder\.proj\.", "text.project."),
    (r"^y_embedder\.norm\.", "text.norm."),
    (r"^y_pos_embedding$", "text.place"),
    (r"\.attn\.qkv_x\.", ".attn.qkv."),
    (r"\.attn\.kv_y\.", ".text."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published text-to-image PixNerd under our names, as in the class form.

    Keys of the text meet the patches' queries, so their entries lie in the same order.
    """
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value[0] if name == "text.place" else value
    named = pixnerd.from_published(named)
    for name in list(named):
        stem, found, _ = name.partition(".text.weight")
        if found:
            head = named[f"{stem}.attention.k_norm.weight"].shape[0]
            named[name] = unalternate_keys(named[name], head)
    return named
