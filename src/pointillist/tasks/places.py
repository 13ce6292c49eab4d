"""Where the answer is asked for: everywhere, in one box of the grid, or at places drawn by chance.

A model on sets answers at any places, and its cost grows with their number; training need not ask
at all of them. A local model is trained best on a box, in which places lie as close as on the whole
grid; one that mixes all places may as well be asked at places drawn from everywhere.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pointillist.draws import Draw
from pointillist.layers.observations import centres
from pointillist.types import Batch, Count, InputError, by_kind, config


@config
class PlacesBase(ABC):
    """A rule by which places of a grid, or points of a set, are asked."""

    @property
    def some(self) -> bool:
        """Whether the answer is asked at some places only, so that the state becomes a set."""
        return True

    @abstractmethod
    def chosen(
        self, draw: Draw, size: tuple[int, ...], weight: Float[Tensor, "b k"]
    ) -> Int[Tensor, "b n"]:
        """Row-major numbers of the places that are asked, each once; `weight` is what they count.

        Those that count for nothing come last: they fill up where too few others are.
        """

    def check_size(self, size: tuple[int, ...]) -> None:
        """InputError where a grid of `size` has no such places; this one fits all."""
        return None

    def ask(self, batch: Batch, draw: Draw) -> Batch:
        """The batch at the places that are asked, as a set; what is observed stays as it is."""
        if not self.some:
            return batch
        size = tuple(batch.x.shape[2:])
        b, flat = batch.x.shape[0], batch.x.flatten(2)
        weight = torch.ones_like(flat[:, :1]) if batch.weight is None else batch.weight.flatten(2)
        which = self.chosen(draw, size, weight.amax(1))
        where = batch.where
        if where is None:
            where = centres(size).to(flat.device).expand(b, -1, -1)
        return batch._replace(
            x=_at(flat, which),
            weight=_at(weight, which),
            where=where.gather(1, which[:, :, None].expand(-1, -1, where.shape[2])),
        )


def _at(value: Float[Tensor, "b c k"], which: Int[Tensor, "b n"]) -> Float[Tensor, "b c n"]:
    return value.gather(2, which[:, None].expand(-1, value.shape[1], -1))


@config
class EverywhereConfig(PlacesBase):
    """All places, as a grid."""

    kind: Literal["everywhere"] = "everywhere"

    @property
    def some(self) -> bool:
        return False

    def chosen(
        self, draw: Draw, size: tuple[int, ...], weight: Float[Tensor, "b k"]
    ) -> Int[Tensor, "b n"]:
        return torch.arange(weight.shape[1], device=weight.device).expand(weight.shape[0], -1)


@config
class BoxConfig(PlacesBase):
    """A box of `edge` cells along every axis (all of a shorter one) at a corner drawn evenly."""

    kind: Literal["box"] = "box"
    edge: int = 16

    def __post_init__(self) -> None:
        if self.edge < 1:
            raise InputError(f"task.places.edge is {self.edge}; it is 1 or more")

    def chosen(
        self, draw: Draw, size: tuple[int, ...], weight: Float[Tensor, "b k"]
    ) -> Int[Tensor, "b n"]:
        if math.prod(size) != weight.shape[1] or (len(size) == 1 and size[0] < self.edge):
            raise InputError("task.places.kind is box, but there is no grid; use random")
        b, device = weight.shape[0], weight.device
        number = torch.zeros(b, 1, dtype=torch.long, device=device)
        share = draw.uniform("box", (len(size),))
        for axis, n in enumerate(size):
            edge = min(self.edge, n)
            corner = (share[:, axis] * (n - edge + 1)).long()
            cells = corner[:, None] + torch.arange(edge, device=device)
            number = (number[:, :, None] * n + cells[:, None]).flatten(1)
        return number


@config
class RandomConfig(PlacesBase):
    """`count` places in a random order, those that count in the loss before all others."""

    kind: Literal["random"] = "random"
    count: Count = 204

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"task.places.count is {self.count}; it is 1 or more")

    def check_size(self, size: tuple[int, ...]) -> None:
        if self.count > math.prod(size):
            raise InputError(
                f"task.places.count is {self.count}, but a sample has {math.prod(size)} places; "
                f"ask at fewer, or set task.places.kind=everywhere"
            )

    def chosen(
        self, draw: Draw, size: tuple[int, ...], weight: Float[Tensor, "b k"]
    ) -> Int[Tensor, "b n"]:
        bits = draw.bits("places", (weight.shape[1],))
        order = torch.argsort(bits + (weight <= 0) * 2**32, dim=1, stable=True)
        return order[:, : self.count]


Places = Annotated[EverywhereConfig | BoxConfig | RandomConfig, by_kind]
