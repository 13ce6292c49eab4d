"""State spaces on fields: what is observed and what is asked, scanned along a curve (2312.00752).

Every block passes both ways, so that each place hears of every other at a cost that grows with the
number of places, not with its square.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.layers.attention import zero_
from pointillist.layers.curve import Curve
from pointillist.layers.embed import LabelEmbedding, TimeEmbedding
from pointillist.layers.fused import Fused
from pointillist.layers.mamba import BothWays, Form, Sequence, sequence_of
from pointillist.layers.norm import PlainLayerNorm, RMSNorm, modulate, modulated_norm
from pointillist.layers.observations import points_of
from pointillist.layers.perceiver import GaussianFeatures
from pointillist.types import Given, InputError, Prediction, Spec, Takes, Time, config


@config
class MambaConfig:
    """`depth` blocks of `expand * width` channels with `state` numbers each; `conv` steps are seen.

    `form: dual` has one decay a head, and is matrix products. `frequencies` of the coordinates'
    code have standard deviation `frequency_std`, in cycles per unit of coordinates over [-1, 1].
    """

    kind: Literal["mamba"] = "mamba"
    width: int = 512
    depth: int = 6
    state: int = 16
    expand: int = 2
    conv: int = 4
    curve: Curve = "hilbert"
    form: Form = "selective"
    frequencies: int = 256
    frequency_std: float = 5.0
    time_scale: float = 1000.0

    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("width", "depth", "state", "expand", "conv", "frequencies"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("frequency_std", "time_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"model.{name} is {getattr(self, name)}; it must be above 0, and finite"
                )

    def build(self, spec: Spec) -> "MambaField":
        return MambaField(self, spec)


class Block(nn.Module):
    """h += gate * mix(norm(h) (1 + scale) + shift), all three linear in time and label."""

    def __init__(self, c: MambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(c.width)
        self.mix = BothWays(c.width, c.state, c.expand, c.conv, c.form)
        self.modulation = Fused(c.width, 3 * c.width, parts=3)
        zero_(self.modulation)

    def forward(
        self,
        h: Float[Tensor, "b l d"],
        c: Float[Tensor, "b d"],
        valid: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b l d"]:
        shift, scale, gate = self.modulation(c).chunk(3, -1)
        mixed = self.mix(modulated_norm(self.norm, h, shift, scale), valid, last=True)
        # 1 + gate: with nothing but mixing in a block, none would be a network of no depth.
        return torch.addcmul(h, 1 + gate[:, None], mixed)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    query: Float[Tensor, "b k d"]
    observed: Float[Tensor, "b m d"] | None
    sequence: Sequence


class MambaField(nn.Module):
    """Observed points and noisy places in one sequence; an answer is its place's token."""

    takes = Takes(axes=(1, 2, 3), sets=True, observations="scattered")

    def __init__(self, config: MambaConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        d, c = config.width, spec.channels
        self.place = GaussianFeatures(len(spec.axes), config.frequencies, config.frequency_std)
        features = 2 * config.frequencies
        self.observed = nn.Linear(c + features, d)  # each kind of token has a bias of its own,
        self.query = nn.Linear(features, d)  # which tells them apart
        self.state = nn.Linear(c, d)
        self.time = TimeEmbedding(d, config.time_scale)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = PlainLayerNorm(d)
        self.modulation = Fused(d, 2 * d, parts=2)
        self.head = nn.Linear(2 * d, c)
        zero_(self.head, self.modulation)

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        where = given.where
        assert where is not None, "the door gives places"
        label = None
        if self.label is not None:
            missing = torch.full((where.shape[0],), -1, dtype=torch.long, device=where.device)
            label = self.label(missing if given.label is None else given.label)
        query = self.query(self.place(where))
        found = points_of(given, self.spec.channels)
        if found is None:
            return Context(label, query, None, sequence_of(where, None, None, self.config.curve))
        at, value, told = found
        observed = self.observed(torch.cat((value.mT, self.place(at)), -1))
        sequence = sequence_of(where, at, told[:, 0], self.config.curve)
        return Context(label, query, observed, sequence)

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
        c = nn.functional.silu(c)
        asked = (context.query + self.state(xt.mT)).float()
        h = context.sequence.of(context.observed, asked)
        valid = context.sequence.there(h.shape[0])
        for block in self.blocks:
            h = block(h, c, valid)
        shift, scale = self.modulation(c).chunk(2, -1)
        mixed = modulate(self.norm(context.sequence.places(h)), shift, scale)
        return Prediction(self.head(torch.cat((mixed, asked.to(mixed.dtype)), -1)).mT)
