"""A local model asked tile by tile: as much memory as a tile needs, the answer of the whole.

An answer depends on nothing farther off than `Takes.reach`. So a tile is asked together with all
places and observations that lie within reach of it, and of its answer only the tile itself is
kept: no seam, no blending. State and noise are those of the whole field.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pointillist.layers.observations import points_of
from pointillist.models.door import Network
from pointillist.types import Given, InputError, Prediction, State, Time


class Tile(NamedTuple):
    """Places that a tile is asked with (padded by repetition), and which of them are its own."""

    near: Int[Tensor, "b n"]
    own: Bool[Tensor, "b n"]
    context: Any


def in_tiles(network: Network, edge: float | None) -> Network:
    """The network, asked tile by tile where an edge is given."""
    return network if edge is None else TiledNetwork(network, edge)


class TiledNetwork(Network):
    """A network on sets, asked in boxes of edge `edge` of the coordinates' span [-1, 1]."""

    def __init__(self, network: Network, edge: float) -> None:
        Network.__init__(self, network.model)
        if not 0 < edge < math.inf:
            raise InputError(f"tile is {edge:g}; it is above 0, in coordinates from -1 to 1")
        if not self.takes.reach:
            raise InputError(
                f"tile is {edge:g}, but an answer of model {self.name} depends on all places; "
                f"leave tile out, or ask a local model"
            )
        self.edge = edge

    def condition(
        self, given: Given, size: tuple[int, ...], asked: tuple[int, ...] | None = None
    ) -> list[Tile]:
        """What each tile needs; the neighbours of its places are found once, here."""
        batch = next((v.shape[0] for v in given if isinstance(v, Tensor)), 1)
        given = self._admit(given, size, batch)
        assert given.where is not None
        batch, where = given.where.shape[0], given.where
        reach = torch.tensor(self.takes.reach, device=where.device)
        points = points_of(given, self.model.spec.channels)  # type: ignore[union-attr, arg-type]
        count = math.ceil(2 / self.edge)
        tiles = []
        for corner in torch.cartesian_prod(*[torch.arange(count)] * where.shape[2]).view(
            -1, where.shape[2]
        ):
            low = (corner * (2 / count) - 1).to(where.device)
            own = _within(where, low, 2 / count, corner == count - 1)
            if not own.any():
                continue
            near, there = _packed(_around(where, low, 2 / count, reach))
            some = given._replace(where=_rows(where, near))
            if points is not None:
                at, value, valid = points
                seen, told = _packed(_around(at, low, 2 / count, reach) & valid[:, 0])
                some = some._replace(
                    at=_rows(at, seen), value=_columns(value, seen), valid=told[:, None]
                )
            context = Network.condition(self, some, (near.shape[1],))
            tiles.append(Tile(near, own.gather(1, near) & there, context))
        return tiles

    def __call__(
        self,
        xt: State,
        t: Time,
        given: Given,
        context: Any = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        """The answer at all places. Tiles have no tokens of the whole: `taps` are refused."""
        if taps:
            raise InputError("tokens behind blocks are not to be had of tiles; leave tile out")
        size = tuple(xt.shape[2:])
        tiles = self.condition(given, size) if context is None else context
        flat, found = xt.flatten(2), None
        for near, own, inner in tiles:
            part = Network.__call__(self, _columns(flat, near), t, given, inner).value
            if found is None:
                found = part.new_zeros(part.shape[0], part.shape[1], flat.shape[2])
            row, place = own.nonzero(as_tuple=True)
            found[row, :, near[row, place]] = part[row, :, place]
        assert found is not None, "every place lies in some tile"
        return Prediction(found.unflatten(2, size))


def _within(
    at: Float[Tensor, "b k s"], low: Float[Tensor, " s"], edge: float, last: Bool[Tensor, " s"]
) -> Bool[Tensor, "b k"]:
    """Which places lie in the box at `low`; the last box of an axis has its upper rim too."""
    below = (at < low + edge) | last.to(at.device)
    return ((at >= low) & below).all(-1)


def _around(
    at: Float[Tensor, "b k s"], low: Float[Tensor, " s"], edge: float, reach: Float[Tensor, " s"]
) -> Bool[Tensor, "b k"]:
    """Which places lie in the box or within reach of it; a little more, against rounding."""
    margin = reach * 1.001 + 1e-6
    return ((at >= low - margin) & (at <= low + edge + margin)).all(-1)


def _packed(chosen: Bool[Tensor, "b k"]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Numbers of the chosen in their order, as many as the fullest row has, and which are meant."""
    n = max(int(chosen.sum(1).max()), 1)
    order = torch.argsort((~chosen).to(torch.int8), dim=1, stable=True)[:, :n]
    return order, chosen.gather(1, order)


def _rows(at: Float[Tensor, "b k s"], which: Int[Tensor, "b n"]) -> Float[Tensor, "b n s"]:
    return at.gather(1, which[:, :, None].expand(-1, -1, at.shape[2]))


def _columns(value: Float[Tensor, "b c k"], which: Int[Tensor, "b n"]) -> Float[Tensor, "b c n"]:
    return value.gather(2, which[:, None].expand(-1, value.shape[1], -1))
