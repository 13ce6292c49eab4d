"""From noise to pictures that agree with what is known of them."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from pointillist.consistent import Consistency
from pointillist.data.words import Shelf
from pointillist.engine.device import autocast
from pointillist.guidance import (
    Count,
    Field,
    GuidanceConfig,
    classifier_free,
    network_field,
    pinned,
)
from pointillist.known import Known
from pointillist.models import Network, in_tiles
from pointillist.objective import Interpolant
from pointillist.samplers import SAMPLERS, STOCHASTIC, Noise, Watch
from pointillist.types import Estimate, Given, State


class Said(NamedTuple):
    """The prompts of all pictures by their numbers, and the one that is led away from."""

    shelf: Shelf
    prompts: tuple[str, ...]
    away: str

    def into(self, given: Given, index: Int[Tensor, " b"]) -> Given:
        """`given` with what the prompts of some say."""
        return self.shelf([self.prompts[i] for i in index.tolist()]).into(given)

    def away_into(self, given: Given, index: Int[Tensor, " b"]) -> Given:
        """`given` with what is led away from in the place of a prompt."""
        return self.shelf([self.away] * index.shape[0]).into(given)

    def is_away(self, index: Int[Tensor, " b"]) -> bool:
        """Whether all these prompts are what is led away from."""
        return all(self.prompts[i] == self.away for i in index.tolist())


class Asked(NamedTuple):
    """A network, the path that it answers on, and what it is given."""

    network: Network
    objective: Interpolant
    given: Given


def guided(
    asked: Asked, away: Asked | None, guidance: GuidanceConfig, size: tuple[int, ...], count: Count,
    tile: float | None = None,
) -> Field:  # fmt: skip
    """The field of one batch, guided where there is something to lead away from."""
    fields = [
        network_field(in_tiles(one.network, tile), one.objective, one.given, size, count)
        for one in (asked, away) if one is not None
    ]  # fmt: skip
    return fields[0] if away is None else classifier_free(fields[0], fields[1], guidance)


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
