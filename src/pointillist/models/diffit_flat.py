"""DiffiT without a U: a plain transformer on patches whose attention time steers (2312.02139).

Published on latents of 32x32 and 64x64; here it takes any grid. Time and label enter by the
attention alone: there is no shift, scale or gate. The window is the whole training grid, so that on
a larger grid attention stays within windows of that size.
"""

import re
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.encoders import NoEncoderConfig, Observing, Site, answered
from pointillist.layers.attention import check_heads, zero_
from pointillist.layers.embed import (
    AugmentEmbedding,
    LabelEmbedding,
    TimeEmbedding,
    embed_given,
    sincos,
)
from pointillist.layers.mlp import MLP
from pointillist.layers.norm import PlainLayerNorm
from pointillist.layers.patch import on_grid, patch_grid, patchify, unpatchify
from pointillist.layers.time_attention import TimeAttention, TimeBlock
from pointillist.types import Given, InputError, Prediction, Spec, State, Takes, Time, config


@config
class DiffiTFlatConfig:
    """`learn_sigma` doubles the output channels, as published weights have them; `encoder`: how
    observations enter, if they do. `augment_labels`: how many numbers tell how a sample was
    augmented; 0: the model is not told.
    """

    kind: Literal["diffit_flat"] = "diffit_flat"
    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 2
    mlp_ratio: float = 4.0
    time_scale: float = 1000.0
    max_period: float = 1e4
    learn_sigma: bool = False
    augment_labels: int = 0
    encoder: Observing = NoEncoderConfig()

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "time_scale", "max_period"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        if self.augment_labels < 0:
            raise InputError(f"model.augment_labels is {self.augment_labels}; it must be 0 or more")
        check_heads(self.width, self.heads)
        if int(self.width * self.mlp_ratio) < 1:
            raise InputError(f"model.mlp_ratio is {self.mlp_ratio}, which leaves no hidden unit of "
                             f"width {self.width}; raise it")  # fmt: skip

    def build(self, spec: Spec) -> "DiffiTFlat":
        return DiffiTFlat(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    told: Float[Tensor, "b d"] | None  # the label, and how the sample was augmented
    place: Float[Tensor, "n d"]
    observed: Any  # the encoder's own


class DiffiTFlat(nn.Module):
    """Patchify, add places, blocks, norm, SiLU and a linear head, unpatchify."""

    def __init__(self, config: DiffiTFlatConfig, spec: Spec) -> None:
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
        self.blocks = nn.ModuleList(
            TimeBlock(
                TimeAttention(d, d, config.heads, self.trained),
                MLP(d, int(d * config.mlp_ratio)),
                PlainLayerNorm,
            )
            for _ in range(config.depth)
        )
        self.norm = PlainLayerNorm(d)
        self.head = nn.Linear(d, outputs * cells)
        self.initialise()

    def initialise(self) -> None:
        """Xavier for linear layers, N(0, 0.02) for embeddings, zero for the head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        if self.label is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        zero_(self.head)
        self.encoder.initialise()

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        grid, device = patch_grid(size, self.config.patch_size), self.head.weight.device
        place = sincos(grid, self.trained, self.config.width, device)
        told = embed_given(self.label, self.augment, given)
        return Context(told, place, self.encoder.condition(given, size, grid))

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
        c = self.time(t) if context.told is None else self.time(t) + context.told
        grid = patch_grid(size, self.config.patch_size)

        x = self.patch(patchify(xt, self.config.patch_size)).float()
        x = self.encoder(x, F.silu(c), context.observed) + context.place
        x = x.unflatten(1, grid)
        for number, block in enumerate(self.blocks, 1):
            x = block(x, c)
            if number in taps:
                hidden.append(on_grid(x.flatten(1, -2), grid))

        x = self.head(F.silu(self.norm(x))).flatten(1, -2)
        value = unpatchify(x, self.config.patch_size, size)
        return answered(value, self.encoder.guess(context.observed), hidden)


PUBLISHED = (
    (r"x_embedder\.proj\.", "patch."),
    (r"t_embedder\.mlp\.0\.", "time.up."),
    (r"t_embedder\.mlp\.2\.", "time.out."),
    (r"y_embedder\.embedding_table\.", "label.table."),
    (r"\.attn\.qkv_temb\.", ".attention.time."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.relative_position_bias_table$", ".attention.bias_table"),
    (r"\.mlp\.fc1\.", ".mlp.up."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
    (r"final_layer\.linear\.", "head."),
)


def without_index(state: dict[str, Any]) -> dict[str, Any]:
    """The weights alone: published files keep, beside every table of biases, which row of it
    belongs to which pair of cells, in whole numbers.
    """
    return {n: v for n, v in state.items() if not n.endswith(".attn.relative_position_index")}


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the published latent DiffiT under our names; what is a fixed table is left out."""
    named = {}
    for name, value in without_index(state).items():
        if name == "pos_embed":
            continue
        for pattern, ours in PUBLISHED:
            name = re.sub(pattern, ours, name)
        named[name] = value.flatten(1) if name == "patch.weight" else value
    return named
