"""From noise to pictures that agree with what is known of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from pointillist.consistent import Consistency
from pointillist.engine.device import autocast
from pointillist.guidance import Field, pinned
from pointillist.known import Known
from pointillist.samplers import SAMPLERS, STOCHASTIC, Noise, Watch
from pointillist.types import Estimate, State


class Walk(NamedTuple):
    """How a field is walked: a sampler by name, its times, and what it draws on the way."""

    sampler: str
    times: Tensor
    method: Consistency
    fresh: Noise
    watch: Watch | None = None

    def __call__(
        self,
        field: Field,
        begin: State,
        eps: State,
        known: Known | None,
        level: float,
        shown: bool,
    ) -> State:
        """Pictures; `eps` is the noise that the walk began with, `level` that of what is known.

        Pixels that are known exactly, and were `shown` to the network, are held on their own path
        (`guidance.pinned`); anything else that is known is for `method`.
        """
        sampler = SAMPLERS[self.sampler]
        if known is None:
            return sampler(field, begin, self.times, noise=self.fresh, watch=self.watch)
        inside = known.seen is not None and known.within(tuple(begin.shape[2:]))
        if inside and shown and not level and self.method.kind == "projection":
            assert known.seen is not None and known.mask is not None
            steady = None if self.sampler in STOCHASTIC else eps
            field = pinned(field, known.seen, known.mask, steady)
            x = sampler(field, begin, self.times, noise=self.fresh, watch=self.watch)
            return torch.where(known.mask, known.seen, x)
        return self.method.apply(
            sampler, field, begin, self.times, known.measure, known.y, level,
            noise=self.fresh, watch=self.watch,
        )  # fmt: skip


def evaluated(field: Field, device: torch.device, dtype: str) -> Field:
    """The field with its network in `dtype`; what walks on it stays in float32."""

    def estimate(x: Tensor, t: Tensor) -> Estimate:
        with autocast(device, dtype):
            return field.estimate(x, t)

    return Field(estimate, field.path)
