"""Perceiver IO on fields: observed points into latents, from which any place is asked (2107.14795).

What is asked is noisy, and neighbouring places have to agree on what they take away; so the noisy
places are inputs of the latents as well. Without them (`noisy_queries: false`) places are denoised
one by one and only their mean is coherent; then the latents are made once for a whole walk.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.layers.attention import check_heads, zero_
from pointillist.layers.cross_attention import Keys
from pointillist.layers.embed import LabelEmbedding, TimeEmbedding
from pointillist.layers.fused import Fused
from pointillist.layers.norm import PlainLayerNorm, modulate
from pointillist.layers.observations import points_of
from pointillist.layers.perceiver import Answer, Block, GaussianFeatures
from pointillist.types import Given, InputError, Prediction, Spec, Takes, Time, config


@config
class PerceiverIOConfig:
    """`depth` blocks, each a look at the inputs and a thought among the latents, `repeats` times.

    `frequencies` of the coordinates' code have standard deviation `frequency_std`, in cycles per
    unit of coordinates that run over [-1, 1]. `residual`: an answer keeps what is asked, too.
    """

    kind: Literal["perceiver_io"] = "perceiver_io"
    width: int = 512
    latents: int = 512
    depth: int = 6
    repeats: int = 1
    heads: int = 8
    mlp_ratio: float = 4.0
    frequencies: int = 256
    frequency_std: float = 5.0
    noisy_queries: bool = True
    residual: bool = True
    time_scale: float = 1000.0

    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("width", "latents", "depth", "repeats", "heads", "frequencies"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mlp_ratio", "frequency_std", "time_scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")
        check_heads(self.width, self.heads)

    def build(self, spec: Spec) -> "PerceiverIO":
        return PerceiverIO(self, spec)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    place: Float[Tensor, "b k f"]  # of what is asked
    query: Float[Tensor, "b k d"]
    keys: tuple[Keys, ...] | None  # of the observed points, for every block
    valid: Bool[Tensor, "b m"] | None


class PerceiverIO(nn.Module):
    """Queries at any places, observations anywhere, through latents that see both."""

    takes = Takes(axes=(1, 2, 3), sets=True, observations="scattered")

    def __init__(self, config: PerceiverIOConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        d, c = config.width, spec.channels
        self.place = GaussianFeatures(len(spec.axes), config.frequencies, config.frequency_std)
        features = 2 * config.frequencies
        self.observed = nn.Sequential(nn.Linear(c + features, d), nn.LayerNorm(d), nn.GELU())
        self.noisy = nn.Sequential(nn.Linear(c + features, d), nn.LayerNorm(d), nn.GELU())
        self.query = nn.Linear(features, d)
        self.state = nn.Linear(c, d)
        self.time = TimeEmbedding(d, config.time_scale)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.latents = nn.Parameter(torch.empty(config.latents, d))
        self.tell = nn.Linear(d, 2 * d)  # the condition, to latents and queries
        self.blocks = nn.ModuleList(
            Block(d, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.answer = Answer(d, config.heads, config.mlp_ratio, config.residual)
        self.norm = PlainLayerNorm(d)
        self.modulation = Fused(d, 2 * d, parts=2)
        self.head = nn.Linear(d, c)
        nn.init.trunc_normal_(self.latents, std=0.02, a=-2.0, b=2.0)
        zero_(self.head, self.modulation)

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        assert given.where is not None, "the door gives places"
        label = None
        if self.label is not None:
            missing = torch.full(
                (given.where.shape[0],), -1, dtype=torch.long, device=given.where.device
            )
            label = self.label(missing if given.label is None else given.label)
        keys, valid = None, None
        found = points_of(given, self.spec.channels)
        if found is not None:
            at, value, told = found
            tokens = self.observed(torch.cat((value.mT, self.place(at)), -1))
            keys = tuple(self._block(block).look.keys(tokens) for block in self.blocks)
            valid = told[:, 0]
        place = self.place(given.where)
        return Context(label, place, self.query(place), keys, valid)

    def forward(
        self,
        xt: Float[Tensor, "b c k"],
        t: Time,
        given: Given,
        context: Context | None = None,
    ) -> Prediction:
        if context is None:
            context = self.condition(given, tuple(xt.shape[2:]))
        c = self.time(t)
        if context.label is not None:
            c = c + context.label
        to_latents, to_queries = self.tell(nn.functional.silu(c))[:, None].chunk(2, -1)
        z = self.latents + to_latents
        seen = None
        if self.config.noisy_queries:
            seen = self.noisy(torch.cat((xt.mT, context.place), -1)) + to_queries
        for _ in range(self.config.repeats):
            for i, block in enumerate(self.blocks):
                keys, mask = self._inputs(self._block(block), i, context, seen)
                z = block(z, keys, mask)
        q = self.answer(context.query + self.state(xt.mT) + to_queries, z)
        shift, scale = self.modulation(nn.functional.silu(c)).chunk(2, -1)
        return Prediction(self.head(modulate(self.norm(q), shift, scale)).mT)

    @staticmethod
    def _block(block: nn.Module) -> Block:
        assert isinstance(block, Block)
        return block

    @staticmethod
    def _inputs(
        block: Block, i: int, context: Context, seen: Float[Tensor, "b k d"] | None
    ) -> tuple[Keys | None, Bool[Tensor, "b m"] | None]:
        """Keys of what the latents look at: observed points, noisy places, or both."""
        told = None if context.keys is None else context.keys[i]
        if seen is None:
            return told, context.valid
        noisy = block.look.keys(seen)
        if told is None or context.valid is None:
            return noisy, None
        there = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
        joined: Any = (torch.cat((a.to(b.dtype), b), 2) for a, b in zip(told, noisy, strict=True))
        return Keys(*joined), torch.cat((context.valid, there), 1)
