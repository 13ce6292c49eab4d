"""State spaces on fields: what is observed and what is asked, scanned along a curve (2312.00752).

Every block passes both ways, so that each place hears of every other at a cost that grows with the
number of places, not with its square.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pointillist.layers.attention import zero_
from pointillist.layers.curve import Curve, curve_index
from pointillist.layers.embed import LabelEmbedding, TimeEmbedding
from pointillist.layers.fused import Fused
from pointillist.layers.mamba import BothWays, Form, taken
from pointillist.layers.norm import PlainLayerNorm, RMSNorm, modulate, modulated_norm
from pointillist.layers.observations import points_of
from pointillist.layers.perceiver import GaussianFeatures
from pointillist.types import Given, InputError, Prediction, Spec, Takes, Time, config

BITS = 16  # an axis, of the cells that the curve visits


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
            if getattr(self, name) <= 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0")

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
        mixed = self.mix(modulated_norm(self.norm, h, shift, scale), valid)
        # 1 + gate: with nothing but mixing in a block, none would be a network of no depth.
        return torch.addcmul(h, 1 + gate[:, None], mixed)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    label: Float[Tensor, "b d"] | None
    query: Float[Tensor, "b k d"]
    observed: Float[Tensor, "b m d"] | None
    order: Int[Tensor, "b l"]  # of observed points and, after them, places, along the curve
    slot: Int[Tensor, "b k"]  # of every place in that order
    valid: Bool[Tensor, "b l"] | None  # in that order


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
        query, number = self.query(self.place(where)), self._number(where)
        observed, valid = None, None
        found = points_of(given, self.spec.channels)
        if found is not None:
            at, value, told = found
            observed = self.observed(torch.cat((value.mT, self.place(at)), -1))
            there = told[:, 0]
            # Points that are not there come last.
            theirs = self._number(at).masked_fill(~there, torch.iinfo(torch.long).max)
            number = torch.cat((theirs, number), 1)
            valid = torch.cat((there, there.new_ones(where.shape[:2])), 1)
        order = number.argsort(dim=1, stable=True)
        slot = order.argsort(dim=1)[:, -where.shape[1] :]
        valid = None if valid is None else valid.gather(1, order)
        return Context(label, query, observed, order, slot, valid)

    def _number(self, at: Float[Tensor, "b m s"]) -> Int[Tensor, "b m"]:
        cells = 1 << BITS
        cell = ((at.double() + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
        return curve_index(cell, BITS, self.config.curve)

    def forward(
        self,
        xt: Float[Tensor, "b c k"],
        t: Time,
        given: Given,
        context: Context | None = None,
    ) -> Prediction:
        if context is None:
            context = self.condition(given, tuple(xt.shape[2:]))
        b = xt.shape[0]
        c = self.time(t)
        if context.label is not None:
            c = c + context.label
        c = nn.functional.silu(c)
        asked = (context.query + self.state(xt.mT)).float()
        h = asked
        if context.observed is not None:
            h = torch.cat((context.observed.float().expand(b, -1, -1), asked), 1)
        h = taken(h, context.order.expand(b, -1))
        valid = None if context.valid is None else context.valid.expand(b, -1)
        for block in self.blocks:
            h = block(h, c, valid)
        shift, scale = self.modulation(c).chunk(2, -1)
        mixed = modulate(self.norm(taken(h, context.slot.expand(b, -1))), shift, scale)
        return Prediction(self.head(torch.cat((mixed, asked.to(mixed.dtype)), -1)).mT)
