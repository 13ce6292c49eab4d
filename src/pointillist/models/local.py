"""Local attention on fields: every place looks at the points near it and at its neighbours.

What is asked is noisy, and neighbouring places have to agree on what they take away; so a place
looks at observed points and, unless `mixing` is 0, at other places that are asked. An answer
depends on nothing farther off than `depth` times `radius`, and its cost not on their number.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.layers.attention import check_heads, zero_
from pointillist.layers.cross_attention import Keys
from pointillist.layers.embed import LabelEmbedding, TimeEmbedding
from pointillist.layers.fused import Fused
from pointillist.layers.local_attention import (
    LocalAttention,
    Pairs,
    Turn,
    far_of,
    interpolation,
    pairs_of,
    turn_of,
)
from pointillist.layers.mlp import MLP
from pointillist.layers.neighbours import Neighbours, neighbours
from pointillist.layers.norm import PlainLayerNorm, modulate
from pointillist.layers.observations import points_of
from pointillist.layers.perceiver import GaussianFeatures
from pointillist.types import Given, InputError, Prediction, Spec, Takes, Time, config


@config
class LocalConfig:
    """`depth` blocks, each a look at up to `neighbours` points and `mixing` other places.

    They lie within `radius`, in coordinates that run over [-1, 1], each axis multiplied by its
    number of `metric` first. Offsets are seen at frequencies of standard deviation
    `frequency_std`, in cycles per radius. `places` frequencies tell where on the whole field a
    place is, of standard deviation 1 in cycles per unit; 0: it is not told, and the model does not
    change when all is moved.
    """

    kind: Literal["local"] = "local"
    width: int = 512
    depth: int = 4
    heads: int = 8
    mlp_ratio: float = 4.0
    radius: float = 0.3
    neighbours: int = 16
    mixing: int = 16
    metric: tuple[float, ...] = ()
    frequency_std: float = 1.0
    places: int = 32
    time_scale: float = 1000.0

    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "neighbours"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("mixing", "places"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("mlp_ratio", "radius", "frequency_std", "time_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"model.{name} is {getattr(self, name)}; it must be above 0, and finite"
                )
        if not all(0 < factor < math.inf for factor in self.metric):
            raise InputError(
                f"model.metric is {list(self.metric)}; its numbers are above 0, and finite"
            )
        check_heads(self.width, self.heads)

    def build(self, spec: Spec) -> "Local":
        self.check_axes(spec)
        return Local(self, spec)

    def check_axes(self, spec: Spec) -> None:
        """InputError where the metric is of other axes than the data."""
        if self.metric and len(self.metric) != len(spec.axes):
            raise InputError(
                f"model.metric has {len(self.metric)} numbers, the data {len(spec.axes)} axes; "
                f"give one for each"
            )


class LocalBlock(nn.Module):
    """x += gate f(norm(x) (1 + scale) + shift) for local attention, then for the MLP (adaLN)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = PlainLayerNorm(width), PlainLayerNorm(width)
        self.attention = LocalAttention(width, heads)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.modulation = Fused(width, 6 * width, parts=6)

    def forward(
        self,
        x: Float[Tensor, "b k d"],
        c: Float[Tensor, "b d"],
        told: Keys | None,
        pairs: Pairs,
        turn: Turn,
        mixes: bool,
    ) -> Float[Tensor, "b k d"]:
        """`told`: keys of the observed points, before those of the places themselves."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, -1)
        h = modulate(self.norm1(x), shift1, scale1)
        keys = self.keys(h, told, turn, mixes)
        x = torch.addcmul(x, gate1.unsqueeze(1), self.attention(h, keys, pairs, turn))
        h = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return torch.addcmul(x, gate2.unsqueeze(1), h)

    def keys(self, h: Tensor, told: Keys | None, turn: Turn, mixes: bool) -> Keys:
        """Keys of observed points, of the places `h`, or of both in this order."""
        own = self.attention.keys(h if mixes else h[:, :0], turn if mixes else turn[:, :, :0])
        if told is None:
            return own
        k, v = (torch.cat((a.to(b.dtype), b), 2) for a, b in zip(told, own, strict=True))
        return Keys(k, v)


def used(
    at: Float[Tensor, "b m s"], value: Float[Tensor, "b c m"], near: Neighbours
) -> tuple[Float[Tensor, "b n s"], Float[Tensor, "b c n"], Neighbours]:
    """Only the points that are somebody's neighbours: no other is ever looked at."""
    b, m = at.shape[:2]
    if m == 0 or at.device.type != "cpu":  # counting them would halt a GPU
        return at, value, near
    counts = torch.zeros(b, m, device=at.device)
    counts.scatter_add_(1, near.index.flatten(1), near.valid.flatten(1).float())
    kept = counts > 0
    n = max(int(kept.sum(1).max()), 1)
    order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)[:, :n]
    place = torch.zeros(b, m, dtype=torch.long, device=at.device)
    place.scatter_(1, order, torch.arange(n, device=at.device).expand(b, -1))
    index = place.gather(1, near.index.flatten(1)).view_as(near.index)
    return (
        at.gather(1, order[:, :, None].expand(-1, -1, at.shape[2])),
        value.gather(2, order[:, None].expand(-1, value.shape[1], -1)),
        near._replace(index=index),
    )


class Context(NamedTuple):
    """What needs neither the state nor the time; neighbours are found once for a whole walk."""

    label: Float[Tensor, "b d"] | None
    query: Float[Tensor, "b k d"] | None  # where the places are
    guess: Float[Tensor, "b k d"]  # what the observed neighbours alone would make of them
    turn: Turn
    told: tuple[Keys, ...] | None  # of the observed points, for every block
    pairs: Pairs

    def expand(self, b: int) -> "Context":
        """That of one sample, for b of which nothing is given that tells them apart."""
        if self.guess.shape[0] == b:
            return self
        label, query, guess = (
            None if v is None else v.expand(b, *v.shape[1:])
            for v in (self.label, self.query, self.guess)
        )
        assert guess is not None
        told = None
        if self.told is not None:
            told = tuple(Keys(*(part.expand(b, -1, -1, -1) for part in keys)) for keys in self.told)
        turn = self.turn.expand(b, -1, -1, -1)
        return Context(label, query, guess, turn, told, self.pairs.expand(b))


class Local(nn.Module):
    """Queries at any places, observations anywhere, each seeing what is near."""

    def __init__(self, config: LocalConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        d, c, axes = config.width, spec.channels, len(spec.axes)
        factors = config.metric or (1.0,) * axes
        self.takes = Takes(
            axes=(axes,),
            sets=True,
            observations="scattered",
            reach=tuple(config.depth * config.radius / factor for factor in factors),
        )
        self.place = GaussianFeatures(axes, config.places, 1.0) if config.places else None
        features = 2 * config.places
        self.observed = nn.Linear(c + features, d)
        self.state = nn.Linear(c, d)
        self.query = nn.Linear(features, d) if features else None
        self.guess = nn.Linear(c + 1, d)
        self.time = TimeEmbedding(d, config.time_scale)
        self.label = LabelEmbedding(len(spec.classes), d) if spec.classes else None
        self.blocks = nn.ModuleList(
            LocalBlock(d, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = PlainLayerNorm(d)
        self.modulation = Fused(d, 2 * d, parts=2)
        self.head = nn.Linear(d, c)
        zero_(self.head, self.modulation)
        zero_(*(self._block(block).modulation for block in self.blocks))

    def condition(self, given: Given, size: tuple[int, ...]) -> Context:
        where, m = given.where, self.config
        assert where is not None, "the door gives places"
        b, turn = where.shape[0], self._turn(where)
        label = None
        if self.label is not None:
            missing = torch.full((b,), -1, dtype=torch.long, device=where.device)
            label = self.label(missing if given.label is None else given.label)
        guess = where.new_zeros(b, where.shape[1], self.spec.channels + 1)
        sets, told = [], None
        found = points_of(given, self.spec.channels)
        if found is not None:
            at, value, valid = found
            near = neighbours(where, at, valid, m.neighbours, m.radius, metric=m.metric)
            at, value, near = used(at, value, near)
            sets.append((at, near))
            guess = interpolation(value, near, far_of(where, at, near, m.metric))
            tokens, around = self.observed(self._told(value.mT, at)), self._turn(at)
            told = tuple(self._block(block).attention.keys(tokens, around) for block in self.blocks)
        if m.mixing:
            every = torch.ones_like(where[..., 0], dtype=torch.bool)[:, None]
            sets.append(
                (where, neighbours(where, where, every, m.mixing, m.radius, True, m.metric))
            )
        query = None
        if self.place is not None and self.query is not None:
            query = self.query(self.place(where))
        pairs = pairs_of(where, sets, m.metric)
        return Context(label, query, self.guess(guess), turn, told, pairs)

    def forward(
        self,
        xt: Float[Tensor, "b c k"],
        t: Time,
        given: Given,
        context: Context | None = None,
    ) -> Prediction:
        if context is None:
            context = self.condition(given, tuple(xt.shape[2:]))
        context = context.expand(xt.shape[0])
        x, c = self.enter(xt, t, context)
        for i in range(len(self.blocks)):
            x = self.step(i, x, c, context)
        return self.leave(x, c)

    def enter(self, xt: Float[Tensor, "b c k"], t: Time, context: Context) -> tuple[Tensor, Tensor]:
        """Tokens of the places, `b k d`, and the condition, `b d`."""
        c = self.time(t)
        if context.label is not None:
            c = c + context.label
        x = self.state(xt.mT).float()
        if context.query is not None:
            x = x + context.query
        return x, nn.functional.silu(c)

    def step(self, i: int, x: Tensor, c: Tensor, context: Context) -> Float[Tensor, "b k d"]:
        """Block i."""
        told = None if context.told is None else context.told[i]
        mixes = bool(self.config.mixing)
        x = self._block(self.blocks[i])(x, c, told, context.pairs, context.turn, mixes)
        # Not before: a guess has looked one radius far, as has the first block.
        return x + context.guess if i == 0 else x

    def leave(self, x: Float[Tensor, "b k d"], c: Float[Tensor, "b d"]) -> Prediction:
        """The answer of the last tokens."""
        shift, scale = self.modulation(c).chunk(2, -1)
        return Prediction(self.head(modulate(self.norm(x), shift, scale)).mT)

    def _turn(self, at: Tensor) -> Turn:
        m = self.config
        return turn_of(at, m.radius, m.width // m.heads, m.frequency_std, m.metric)

    def _told(self, value: Float[Tensor, "b k c"], at: Float[Tensor, "b k s"]) -> Tensor:
        """Values, and where they are if the model is told."""
        return value if self.place is None else torch.cat((value, self.place(at)), -1)

    @staticmethod
    def _block(block: nn.Module) -> LocalBlock:
        assert isinstance(block, LocalBlock)
        return block
