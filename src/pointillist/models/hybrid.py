"""Local attention and scans in turn: what is near in detail, and what is far along a curve.

A block of local attention (`local.py`) is followed by one that scans observed points and places
along a space-filling curve (`mamba.py`), so that an answer depends on all that is known, at a cost
that still grows with the number of places. Points keep what they are; places gather.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pointillist.layers.attention import zero_
from pointillist.layers.curve import Curve
from pointillist.layers.fused import Fused
from pointillist.layers.mamba import BothWays, Form, Sequence, sequence_of
from pointillist.layers.norm import PlainLayerNorm, modulate
from pointillist.layers.observations import points_of
from pointillist.models import local
from pointillist.types import Given, InputError, Prediction, Spec, Time, config


@config
class HybridConfig(local.LocalConfig):
    """`depth` pairs of a local block and a scan; fields of both, as in `local` and `mamba`."""

    kind: Literal["hybrid"] = "hybrid"  # type: ignore[assignment]
    depth: int = 3
    state: int = 16
    expand: int = 2
    conv: int = 4
    curve: Curve = "hilbert"
    form: Form = "selective"

    def __post_init__(self) -> None:
        local.LocalConfig.__post_init__(self)
        for name in ("state", "expand", "conv"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be 1 or more")

    def build(self, spec: Spec) -> "Hybrid":
        self.check_axes(spec)
        return Hybrid(self, spec)


class ScanBlock(nn.Module):
    """x += gate * scan(norm(x) (1 + scale) + shift) of the places, among the points (adaLN)."""

    def __init__(self, c: HybridConfig) -> None:
        super().__init__()
        self.norm = PlainLayerNorm(c.width)
        self.mix = BothWays(c.width, c.state, c.expand, c.conv, c.form)
        self.modulation = Fused(c.width, 3 * c.width, parts=3)
        zero_(self.modulation)

    def forward(
        self,
        x: Float[Tensor, "b k d"],
        c: Float[Tensor, "b d"],
        points: Float[Tensor, "b m d"] | None,
        sequence: Sequence,
    ) -> Float[Tensor, "b k d"]:
        shift, scale, gate = self.modulation(c).chunk(3, -1)
        h = sequence.of(points, modulate(self.norm(x), shift, scale))
        mixed = sequence.places(self.mix(h, sequence.there(h.shape[0]), last=True))
        return torch.addcmul(x, gate[:, None], mixed)


class Context(NamedTuple):
    """What needs neither the state nor the time."""

    near: local.Context
    points: Float[Tensor, "b m d"] | None
    sequence: Sequence


class Hybrid(local.Local):
    """A local model with a scan behind every block."""

    def __init__(self, config: HybridConfig, spec: Spec) -> None:
        local.Local.__init__(self, config, spec)
        self.takes = self.takes._replace(reach=())  # a scan hears of everything
        self.scans = nn.ModuleList(ScanBlock(config) for _ in range(config.depth))
        self.curve = config.curve

    def condition(self, given: Given, size: tuple[int, ...]) -> Any:
        near = local.Local.condition(self, given, size)
        assert given.where is not None
        found = points_of(given, self.spec.channels)
        if found is None:
            return Context(near, None, sequence_of(given.where, None, None, self.curve))
        at, value, told = found
        points = self.observed(self._told(value.mT, at))
        return Context(near, points, sequence_of(given.where, at, told[:, 0], self.curve))

    def forward(
        self,
        xt: Float[Tensor, "b c k"],
        t: Time,
        given: Given,
        context: Any = None,
    ) -> Prediction:
        if context is None:
            context = self.condition(given, tuple(xt.shape[2:]))
        context = context._replace(near=context.near.expand(xt.shape[0]))
        x, c = self.enter(xt, t, context.near)
        for i, scan in enumerate(self.scans):
            x = self.step(i, x, c, context.near)
            x = scan(x, c, context.points, context.sequence)
        return self.leave(x, c)
