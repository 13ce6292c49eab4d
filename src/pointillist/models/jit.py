"""JiT, "just image transformers" (Li and He, arXiv 2511.13720).

One idea: a plain transformer that predicts the clean picture can work on large patches, because
pictures lie near a low-dimensional manifold and noise does not. Around it: a low-rank patch
embedding, rotary places, RMSNorm, SwiGLU, and class tokens that join the sequence part of the way.
"""

import re
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.encoders import NoEncoderConfig, Observing, Site, answered
from pointillist.layers.adaln import AdaLNBlock
from pointillist.layers.attention import check_heads, zero_
from pointillist.layers.embed import (
    AugmentEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    embed_given,
    sincos,
)
from pointillist.layers.mlp import SwiGLU
from pointillist.layers.norm import RMSNorm, modulated_norm
from pointillist.layers.patch import on_grid, patch_grid, patchify, unpatchify
from pointillist.layers.rope import Rotation, rope
from pointillist.types import Given, InputError, Prediction, Spec, State, Takes, Time, config


@config
class JiTConfig:
    """`dropout` acts behind the attention and inside the MLP of the middle half of the blocks
    (published: 0.2 for H and G). `encoder`: how observations enter, if they do.
    """

    kind: Literal["jit"] = "jit"
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16
    bottleneck: int = 128
    mlp_ratio: float = 4.0
    context_tokens: int = 32
    context_start: int = 4
    dropout: float = 0.0
    encoder: Observing = NoEncoderConfig()
    time_scale: float = 1.0
    max_period: float = 1e4
    theta: float = 1e4
    augment_labels: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size", "bottleneck"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "time_scale", "max_period", "theta"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        check_heads(self.width, self.heads)
        if self.context_tokens < 0:
            raise InputError(f"model.context_tokens is {self.context_tokens}; it must be 0 or more")
        if self.context_tokens and not 0 <= self.context_start < self.depth:
            raise InputError(
                f"model.context_start is {self.context_start}, but there are {self.depth} blocks; "
                f"it lies in [0, {self.depth})"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout is {self.dropout}; it lies in [0, 1)")

    def build(self, spec: Spec) -> "JiT":
        return JiT(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    tokens: Float[Tensor, "b m d"] | None
    place: Float[Tensor, "n d"]
    observed: Any  # the encoder's own
    rotation: Rotation
    rotation_with_tokens: Rotation


class JiT(nn.Module):
    """Bottleneck patches plus places, blocks, class tokens from `context_start` on, linear head."""

    def __init__(self, config: JiTConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        p, d, depth = config.patch_size, config.width, config.depth
        site = Site(spec.channels, spec.size, p, d, config.heads)
        self.encoder = config.encoder.build(site)
        self.takes = Takes(axes=(1, 2, 3), observations=self.encoder.takes, taps=depth)
        self.trained = patch_grid(spec.size, p)
        cells = spec.channels * p ** len(spec.size)
        self.reduce = nn.Linear(cells, config.bottleneck, bias=False)
        self.patch = nn.Linear(config.bottleneck, d)
        self.time = TimeEmbedding(d, config.time_scale, config.max_period)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.augment = AugmentEmbedding.of(config.augment_labels, d)
        self.token_place = (
            nn.Parameter(torch.empty(config.context_tokens, d)) if config.context_tokens else None
        )
        hidden = int(int(d * config.mlp_ratio) * 2 / 3)
        middle = range(depth // 4, depth // 4 * 3)
        self.blocks = nn.ModuleList(
            AdaLNBlock(d, config.heads, SwiGLU(d, hidden, drop), drop)
            for drop in (config.dropout if i in middle else 0.0 for i in range(depth))
        )
        self.norm = RMSNorm(d)
        self.modulation = nn.Linear(d, 2 * d)
        self.head = nn.Linear(d, cells)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for linear layers, N(0, 0.02) for embeddings, zero for modulations and head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        if self.token_place is not None:
            nn.init.normal_(self.token_place, std=0.02)
        zero_(
            self.modulation,
            self.head,
            *(block.get_submodule("modulation") for block in self.blocks),
        )
        self.encoder.initialise()

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        grid, c = patch_grid(size, self.config.patch_size), self.config
        device = self.head.weight.device
        tokens, label = None, embed_given(self.label, None, given)
        if self.token_place is not None:
            tokens = self.token_place[None]
            if label is not None:
                tokens = tokens + label[:, None]
        label = embed_given(self.label, self.augment, given)  # the tokens are of the class alone
        place = sincos(grid, self.trained, c.width, device)
        turn = rope(grid, self.trained, c.width // c.heads, c.theta, c.context_tokens, device)
        observed = self.encoder.condition(given, size, grid)
        return Context(label, tokens, place, observed, turn[c.context_tokens :], turn)

    def forward(
        self,
        xt: State,
        t: Time,
        given: Given,
        context: Context | None = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        size, hidden = tuple(xt.shape[2:]), []
        context = self.condition(given, size) if context is None else context
        c = self.time(t) if context.label is None else self.time(t) + context.label
        c = F.silu(c)

        x = self.patch(self.reduce(patchify(xt, self.config.patch_size))).float()
        x = self.encoder(x, c, context.observed) + context.place
        rotation = context.rotation
        for i, block in enumerate(self.blocks):
            if context.tokens is not None and i == self.config.context_start:
                x = torch.cat((context.tokens.expand(x.shape[0], -1, -1), x), 1)
                rotation = context.rotation_with_tokens
            x = block(x, c, rotation)
            if i + 1 in taps:
                hidden.append(on_grid(x, patch_grid(size, self.config.patch_size)))
        if context.tokens is not None:
            x = x[:, context.tokens.shape[1] :]

        shift, scale = self.modulation(c).chunk(2, -1)
        x = self.head(modulated_norm(self.norm, x, shift, scale))
        value = unpatchify(x, self.config.patch_size, size)
        return answered(value, self.encoder.guess(context.observed), hidden)


PUBLISHED = (
    (r"x_embedder\.proj1\.", "reduce."),
    (r"x_embedder\.proj2\.", "patch."),
    (r"t_embedder\.mlp\.0\.", "time.up."),
    (r"t_embedder\.mlp\.2\.", "time.out."),
    (r"y_embedder\.embedding_table\.", "label.table."),
    (r"in_context_posemb", "token_place"),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.w12\.", ".mlp.gate_up."),
    (r"\.mlp\.w3\.", ".mlp.down."),
    (r"final_layer\.norm_final\.", "norm."),
    (r"final_layer\.linear\.", "head."),
    (r"final_layer\.adaLN_modulation\.1\.", "modulation."),
    (r"\.adaLN_modulation\.1\.", ".modulation."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published JiT under our names; the fixed position table is made anew."""
    named = {}
    for name, value in state.items():
        name = name.removeprefix("net.")
        if name == "pos_embed":
            continue
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        if name in ("reduce.weight", "patch.weight"):
            value = value.flatten(1)
        named[name] = value[0] if name == "token_place" and value.dim() == 3 else value
    return named
