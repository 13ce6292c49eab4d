"""DiT on pixels: the plain transformer with adaLN-Zero (Peebles and Xie, arXiv 2212.09748).

Time and label set a shift, a scale and a gate in every block; the gates start at zero, so the
network starts as the identity. This is the vanilla baseline that the pixel models are held against.
"""

import re
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.encoders import NoEncoderConfig, Observing, Site, answered
from pointillist.layers.attention import SelfAttention, check_heads, zero_
from pointillist.layers.embed import (
    AugmentEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    embed_given,
    sincos,
)
from pointillist.layers.fused import Fused
from pointillist.layers.mlp import MLP
from pointillist.layers.norm import PlainLayerNorm, modulate
from pointillist.layers.patch import on_grid, patch_grid, patchify, unpatchify
from pointillist.types import Given, InputError, Prediction, Spec, State, Takes, Time, config


@config
class DiTConfig:
    """`learn_sigma` doubles the output channels, as published weights have them; `encoder`: how
    observations enter, if they do.
    """

    kind: Literal["dit"] = "dit"
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 4
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    max_period: float = 1e4
    learn_sigma: bool = False
    encoder: Observing = NoEncoderConfig()
    augment_labels: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "time_scale", "max_period"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        check_heads(self.width, self.heads)

    def build(self, spec: Spec) -> "DiT":
        return DiT(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    place: Float[Tensor, "n d"]
    observed: Any  # the encoder's own


class Block(nn.Module):
    """x += gate * f(modulate(norm(x))) for attention, then for the MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = PlainLayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.norm2 = PlainLayerNorm(config.width)
        self.mlp = MLP(config.width, int(config.width * config.mlp_ratio))
        self.modulation = Fused(config.width, 6 * config.width, parts=6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        h = self.attention(modulate(self.norm1(x), shift1, scale1))
        x = torch.addcmul(x, gate1.unsqueeze(1), h)
        h = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return torch.addcmul(x, gate2.unsqueeze(1), h)


class DiT(nn.Module):
    """Patchify, add places, blocks, a modulated linear head, unpatchify."""

    def __init__(self, config: DiTConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        p, d = config.patch_size, config.width
        site = Site(spec.channels, spec.size, p, d, config.heads)
        self.encoder = config.encoder.build(site)
        self.takes = Takes(axes=(1, 2, 3), observations=self.encoder.takes, taps=config.depth)
        self.trained = patch_grid(spec.size, p)
        cells = p ** len(spec.size)
        outputs = spec.channels * (2 if config.learn_sigma else 1)
        self.patch = nn.Linear(spec.channels * cells, d)
        self.time = TimeEmbedding(d, config.time_scale, config.max_period)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.augment = AugmentEmbedding.of(config.augment_labels, d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = PlainLayerNorm(d)
        self.modulation = nn.Linear(d, 2 * d)
        self.head = nn.Linear(d, outputs * cells)
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
        zero_(
            self.modulation,
            self.head,
            *(block.get_submodule("modulation") for block in self.blocks),
        )
        self.encoder.initialise()

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        grid, device = patch_grid(size, self.config.patch_size), self.head.weight.device
        place = sincos(grid, self.trained, self.config.width, device)
        label = embed_given(self.label, self.augment, given)
        return Context(label, place, self.encoder.condition(given, size, grid))

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

        x = self.patch(patchify(xt, self.config.patch_size)).float()
        x = self.encoder(x, c, context.observed) + context.place
        for number, block in enumerate(self.blocks, 1):
            x = block(x, c)
            if number in taps:
                hidden.append(on_grid(x, patch_grid(size, self.config.patch_size)))

        shift, scale = self.modulation(c).chunk(2, -1)
        x = self.head(modulate(self.norm(x), shift, scale))
        value = unpatchify(x, self.config.patch_size, size)
        return answered(value, self.encoder.guess(context.observed), hidden)


PUBLISHED = (
    (r"x_embedder\.proj\.", "patch."),
    (r"t_embedder\.mlp\.0\.", "time.up."),
    (r"t_embedder\.mlp\.2\.", "time.out."),
    (r"y_embedder\.embedding_table\.", "label.table."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.mlp\.fc1\.", ".mlp.up."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
    (r"final_layer\.linear\.", "head."),
    (r"final_layer\.adaLN_modulation\.1\.", "modulation."),
    (r"\.adaLN_modulation\.1\.", ".modulation."),
)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published DiT under our names; the fixed position table is made anew."""
    named = {}
    for name, value in state.items():
        if name == "pos_embed":
            continue
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value.flatten(1) if name == "patch.weight" else value
    return named
