"""Observed pixels as tokens: along a space-filling curve, in groups of a few.

A picture with few observed pixels has few tokens, and each holds pixels that lie close together.
Follows the tokenizer of PixNerDiT (github.com/colpark/kevinhelp1, sfc_encoder.py, MIT), without
its loop over samples and for grids of any size, one to three axes and points anywhere.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.coordinates import Convention, LearnableFourierMLP, fourier, place
from pointillist.layers.curve import LONGEST, Curve, curve_index, curve_order, curve_rank
from pointillist.layers.observations import cell_of, centres, grid_of, points_of
from pointillist.types import Given

FINER = 6  # halvings of a cell that tell points in it apart along the curve


class Tokens(NamedTuple):
    """Tokens, where they are real, and where they lie (zeros where they are not real)."""

    value: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    at: Float[Tensor, "b n s"]


class Points(NamedTuple):
    """Observed points in the order of the curve, filled up to whole groups with zeros."""

    at: Float[Tensor, "b m s"]
    value: Float[Tensor, "b m c"]
    real: Bool[Tensor, "b m"]
    cell: Int[Tensor, "b m"]


class CurveTokenizer(nn.Module):
    """LayerNorm of a linear layer on the features of `group` points that follow on the curve.

    A point's features are its values, a 1 that no empty slot has, the code of its place, and its
    position along the curve in [0, 1]. `hidden` is that of the code (None: Fourier features
    as they are). There are as many tokens as the fullest sample of the batch needs, at least one.
    A token lies at the mean of its points; with `corner` and `unit` coordinates, as published, the
    last point of a partly filled group counts for every empty slot as well.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        bands: tuple[int, ...],
        group: int,
        curve: Curve,
        coordinates: Convention = "centre",
        hidden: int | None = 0,
        token_mlp: bool = False,
        position: bool = True,
        valid_flag: bool = True,
    ) -> None:
        super().__init__()
        self.channels, self.group, self.bands = channels, group, bands
        self.position, self.valid_flag = position, valid_flag
        self.curve: Curve = curve
        self.coordinates: Convention = coordinates
        self.code = None if hidden is None else LearnableFourierMLP(bands, width, hidden)
        self.placed = (2 * sum(bands) if hidden is None else width) + position
        self.told = channels + valid_flag
        self.project = nn.Linear(group * (self.told + self.placed), width)
        self.token_mlp = (
            nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU()) if token_mlp else None
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, given: Given, size: tuple[int, ...]) -> Tokens:
        """size: cells of the grid whose curve orders the points. One token, not real, for nothing
        observed.
        """
        gridded = given.at is None and given.seen is not None and given.seen.shape[2:] == size
        points = self._cells(given, size) if gridded else self._scattered(given, size)
        if points is None:
            zeros = self.norm.weight.new_zeros(1, 1, self.norm.weight.shape[0])
            nowhere = zeros.new_zeros(1, 1, len(size))
            return Tokens(zeros, torch.zeros(1, 1, dtype=torch.bool, device=zeros.device), nowhere)
        real = points.real.unflatten(1, (-1, self.group))
        mask = real.any(-1)
        at = place(points.at, size, self.coordinates)
        # A grid's places are coded once where that is less than once for every observed cell.
        tabled = gridded and math.prod(size) <= mask.numel()
        x = self._bags(points, size) if tabled else self._direct(points, at, size)
        if self.token_mlp is not None:
            x = self.token_mlp(x)
        x = self.norm(x).masked_fill(~mask[..., None], 0)
        return Tokens(x, mask, self._means(at.unflatten(1, (-1, self.group)), real))

    # Points in order.

    def _cells(self, given: Given, size: tuple[int, ...]) -> Points:
        found = grid_of(given, self.channels, size)
        assert found is not None
        seen, known = found[0].flatten(2), found[1].flatten(2) > 0
        order = curve_order(size, self.curve, seen.device)[None].expand(seen.shape[0], -1)
        return self._pick(centres(size).to(seen.device)[None], seen, known, order, size)

    def _scattered(self, given: Given, size: tuple[int, ...]) -> Points | None:
        found = points_of(given, self.channels)
        if found is None or found[0].shape[1] == 0:
            return None
        at, value, known = found
        # Points in one smallest cell go by their coordinates, and at one place by their values.
        keys = [*value.unbind(1), *at.unbind(2), self._along(at, size)]
        order = keys[0].argsort(dim=1, stable=True)
        for key in keys[1:]:
            order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
        return self._pick(at, value, known, order, size)

    def _along(self, at: Float[Tensor, "b m s"], size: tuple[int, ...]) -> Int[Tensor, "b m"]:
        """Numbers along the curve of the grid, continued within its cells."""
        bits = (max(size) - 1).bit_length()
        finer = min(FINER, LONGEST // len(size) - bits)
        edge = torch.tensor(size, device=at.device) << finer
        cell = ((at.double() + 1) / 2 * edge).floor().long().clamp(min=0)
        return curve_index(torch.minimum(cell, edge - 1), bits + finer, self.curve)

    def _pick(
        self,
        at: Float[Tensor, "_ m s"],
        value: Float[Tensor, "b c m"],
        known: Bool[Tensor, "b 1 m"],
        order: Int[Tensor, "b m"],
        size: tuple[int, ...],
    ) -> Points:
        """The observed among ordered points, moved to the front."""
        b, m = order.shape
        there = known[:, 0].gather(1, order)
        count = there.sum(1)
        # Of what has no values, as in `describe`, all is taken as observed.
        most = m if count.is_meta else int(count.max())
        slots = max(1, -(-most // self.group)) * self.group
        # Whatever is not observed goes to one slot too many, which is cut off.
        slot = torch.where(there, there.cumsum(1) - 1, slots)
        chosen = order.new_zeros(b, slots + 1).scatter_(1, slot, order)[:, :slots]
        real = torch.arange(slots, device=order.device) < count[:, None]
        chosen = chosen.masked_fill(~real, 0)
        at = at.expand(b, -1, -1).gather(1, chosen[..., None].expand(-1, -1, at.shape[2]))
        wide = chosen[:, None].expand(-1, value.shape[1], -1)
        value = torch.where(real[:, None], value.gather(2, wide), 0).mT
        return Points(at, value, real, cell_of(at, size))

    # Tokens of ordered points.

    def _told(self, points: Points) -> Float[Tensor, "b m c2"]:
        if not self.valid_flag:
            return points.value
        return torch.cat((points.value, points.real[..., None].to(points.value.dtype)), -1)

    def _places(
        self, at: Float[Tensor, "*b s"], rank: Int[Tensor, " *b"], cells: int
    ) -> Float[Tensor, "*b f"]:
        code = fourier(at, self.bands) if self.code is None else self.code(at)
        if not self.position:
            return code
        return torch.cat((code, rank[..., None] / max(cells - 1, 1)), -1)

    def _direct(
        self, points: Points, at: Float[Tensor, "b m s"], size: tuple[int, ...]
    ) -> Float[Tensor, "b n d"]:
        """The linear layer on all features of every group."""
        rank = curve_rank(size, self.curve, at.device)[points.cell]
        places = self._places(at, rank, math.prod(size)) * points.real[..., None]
        features = torch.cat((self._told(points), places), -1)
        return self.project(features.unflatten(1, (-1, self.group)).flatten(2))

    def _bags(self, points: Points, size: tuple[int, ...]) -> Float[Tensor, "b n d"]:
        """The same: what the linear layer makes of each cell in each slot, made once and added up.

        A batch of b pictures with n tokens each multiplies cells * group rows instead of
        b n group.
        """
        cells, device = math.prod(size), points.at.device
        at = place(centres(size).to(device), size, self.coordinates)
        places = self._places(at, curve_rank(size, self.curve, device), cells)
        weight = self.project.weight.unflatten(1, (self.group, -1))
        of_places = weight[..., self.told :].transpose(0, 1).flatten(0, 1)
        table = F.linear(places, of_places).float().view(cells * self.group, -1)
        nothing = torch.zeros_like(table[:1])
        slot = torch.arange(self.group, device=device).repeat(points.cell.shape[1] // self.group)
        bag = torch.where(points.real, points.cell * self.group + slot, cells * self.group)
        summed = F.embedding_bag(
            bag.view(-1, self.group), torch.cat((table, nothing)), mode="sum"
        ).view(bag.shape[0], -1, table.shape[1])  # fmt: skip
        told = self._told(points).unflatten(1, (-1, self.group)).flatten(2)
        return F.linear(told, weight[..., : self.told].flatten(1), self.project.bias) + summed

    def _means(
        self, at: Float[Tensor, "b n g s"], real: Bool[Tensor, "b n g"]
    ) -> Float[Tensor, "b n s"]:
        count = real.sum(-1, keepdim=True)
        total = (at * real[..., None]).sum(2)
        if self.coordinates == "centre":
            return total / count.clamp(min=1)
        last = (count - 1).clamp(min=0)[..., None].expand(-1, -1, 1, at.shape[-1])
        last = at.gather(2, last)[:, :, 0]
        return torch.where(count > 0, (total + (self.group - count) * last) / self.group, 0)
