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

from pointillist.layers.coordinates import (
    Convention,
    LearnableFourierMLP,
    fourier,
    in_float32,
    place,
)
from pointillist.layers.curve import LONGEST, Curve, curve_index, curve_order, curve_rank
from pointillist.layers.observations import cell_of, centres, checked, points_of
from pointillist.types import Given

FINER = 6  # halvings of a cell that tell points in it apart along the curve


class Tokens(NamedTuple):
    """Tokens, where they are real, and where they lie (zeros where they are not real)."""

    value: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    at: Float[Tensor, "b n s"]


class Points(NamedTuple):
    """Observed points, sample after sample, in the order of the curve: only those there are."""

    at: Float[Tensor, "k s"]
    value: Float[Tensor, "k c"]
    cell: Int[Tensor, " k"]
    sample: Int[Tensor, " k"]
    counts: Int[Tensor, " b"]


def there(known: Bool[Tensor, "b m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Sample and place of all that is observed; everything of what has no values (`describe`)."""
    if known.is_meta:
        b, m = known.shape
        return (
            torch.arange(b, device=known.device).repeat_interleave(m),
            torch.arange(m, device=known.device).repeat(b),
        )
    sample, place = known.nonzero(as_tuple=True)
    return sample, place


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
        gridded = self._is_gridded(given, size)
        points = self._cells(given, size) if gridded else self._scattered(given, size)
        if points is None:
            zeros = self.norm.weight.new_zeros(1, 1, self.norm.weight.shape[0])
            nowhere = zeros.new_zeros(1, 1, len(size))
            return Tokens(zeros, torch.zeros(1, 1, dtype=torch.bool, device=zeros.device), nowhere)
        counts = points.counts
        # Where nothing has values, all samples are alike (`there`).
        alike = -(-points.cell.shape[0] // counts.shape[0])
        most = alike if counts.is_meta else int(counts.max())
        n = max(1, -(-most // self.group))
        # Where each point goes among b * n groups of `group` slots.
        start = points.counts.cumsum(0) - points.counts
        slot = torch.arange(points.cell.shape[0], device=start.device) - start[points.sample]
        slot = slot + points.sample * (n * self.group)
        taken = (points.counts[:, None] - self._firsts(n, start.device)).clamp(0, self.group)
        at = place(points.at, size, self.coordinates)
        cells = math.prod(size)
        if gridded and cells <= taken.numel():
            x = self._bags(points, slot, taken, size)
        else:
            # A grid's places are coded once where that is less than once for every observed cell.
            tabled = gridded and cells <= points.cell.shape[0]
            x = self._direct(points, at, slot, taken, size, tabled)
        if self.token_mlp is not None:
            x = self.token_mlp(x)
        x = self.norm(x).masked_fill(taken[..., None] == 0, 0)
        return Tokens(x, taken > 0, self._means(self._spread(at, slot, taken), taken))

    def _firsts(self, n: int, device: torch.device) -> Int[Tensor, "1 n"]:
        return torch.arange(n, device=device)[None] * self.group

    # Points in order.

    def _is_gridded(self, given: Given, size: tuple[int, ...]) -> bool:
        """Whether all there is are cells of the curve's own grid."""
        seen = given.seen
        return given.at is None and seen is not None and seen.shape[1:] == (self.channels, *size)

    def _cells(self, given: Given, size: tuple[int, ...]) -> Points:
        assert given.seen is not None
        _, mask = checked(given.seen, given.mask, self.channels, size)
        order = curve_order(size, self.curve, mask.device)
        known = mask.flatten(1).index_select(1, order)
        sample, along = there(known)
        cell = order[along]
        # Hidden values are never read, so they may be NaN.
        value = given.seen.flatten(2).mT[sample, cell]
        at = centres(size).to(mask.device)[cell]
        return Points(at, value, cell, sample, known.sum(1))

    def _scattered(self, given: Given, size: tuple[int, ...]) -> Points | None:
        found = points_of(given, self.channels)
        if found is None:
            return None
        at, value, valid = found
        # Points in one smallest cell go by their coordinates, and at one place by their values.
        keys = [*value.detach().unbind(1), *at.unbind(2), self._along(at, size)]
        order = keys[0].argsort(dim=1, stable=True)
        for key in keys[1:]:
            order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
        known = valid[:, 0].gather(1, order)
        sample, along = there(known)
        point = order[sample, along]
        at = at[sample, point]
        return Points(at, value.mT[sample, point], cell_of(at[None], size)[0], sample, known.sum(1))

    def _along(self, at: Float[Tensor, "b m s"], size: tuple[int, ...]) -> Int[Tensor, "b m"]:
        """Numbers along the curve of the grid, continued within its cells."""
        bits = (max(size) - 1).bit_length()
        finer = min(FINER, LONGEST // len(size) - bits)
        edge = torch.tensor(size, device=at.device) << finer
        cell = ((at.double() + 1) / 2 * edge).floor().long().clamp(min=0)
        return curve_index(torch.minimum(cell, edge - 1), bits + finer, self.curve)

    # Tokens of ordered points.

    def _spread(
        self, x: Float[Tensor, "k f"], slot: Int[Tensor, " k"], taken: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n g f"]:
        """Points in their slots; zeros in those that are left over."""
        slots = x.new_zeros(taken.numel() * self.group, x.shape[1]).index_copy(0, slot, x)
        return slots.view(*taken.shape, self.group, x.shape[1])

    def _told(self, points: Points) -> Float[Tensor, "k c2"]:
        return F.pad(points.value, (0, int(self.valid_flag)), value=1.0)

    def _code(self, at: Float[Tensor, "k s"]) -> Float[Tensor, "k f"]:
        return fourier(at, self.bands) if self.code is None else self.code(at)

    def _positions(
        self, cell: Int[Tensor, " k"], size: tuple[int, ...]
    ) -> Float[Tensor, "k one"] | None:
        """Where along the curve each cell lies, in [0, 1]."""
        if not self.position:
            return None
        rank = curve_rank(size, self.curve, cell.device)[cell]
        return rank[:, None] / max(math.prod(size) - 1, 1)

    def _everywhere(self, size: tuple[int, ...], device: torch.device) -> Float[Tensor, "m f"]:
        """The code of every cell of a grid."""
        return self._code(place(centres(size).to(device), size, self.coordinates))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The linear layer's weights of values, codes and positions, by place in a group."""
        weight = self.project.weight.unflatten(1, (self.group, -1))
        coded = self.told + self.placed - self.position
        return weight[..., : self.told], weight[..., self.told : coded], weight[..., coded:]

    def _direct(
        self,
        points: Points,
        at: Float[Tensor, "k s"],
        slot: Int[Tensor, " k"],
        taken: Int[Tensor, "b n"],
        size: tuple[int, ...],
        tabled: bool,
    ) -> Float[Tensor, "b n d"]:
        """The linear layer on all features of every group; `tabled`: codes looked up by cell.

        Positions have their share of it in float32: in bfloat16 half of a thousand along a curve
        are one number.
        """
        if tabled:
            code = F.embedding(points.cell, self._everywhere(size, at.device))
        else:
            code = self._code(at)
        told, coded, along = self._parts()
        features = torch.cat((self._told(points).to(code.dtype), code), -1)
        features = self._spread(features, slot, taken).flatten(2)
        x = F.linear(features, torch.cat((told, coded), -1).flatten(1), self.project.bias).float()
        position = self._positions(points.cell, size)
        if position is None:
            return x
        with in_float32(x):
            return x + self._spread(position, slot, taken).flatten(2) @ along.flatten(1).mT

    def _bags(
        self,
        points: Points,
        slot: Int[Tensor, " k"],
        taken: Int[Tensor, "b n"],
        size: tuple[int, ...],
    ) -> Float[Tensor, "b n d"]:
        """The same: what the linear layer makes of each cell in each slot, made once and added up.

        A batch of b pictures with n tokens each multiplies cells * group rows instead of
        b n group.
        """
        cells, device = math.prod(size), points.at.device
        told, coded, along = self._parts()
        of_codes = coded.transpose(0, 1).flatten(0, 1)
        table = F.linear(self._everywhere(size, device), of_codes).float()
        position = self._positions(torch.arange(cells, device=device), size)
        if position is not None:
            table = table + position * along[..., 0].T.flatten()
        filled = taken.flatten().cumsum(0) - taken.flatten()
        entry = points.cell * self.group + slot % self.group
        table = table.view(cells * self.group, -1)
        summed = F.embedding_bag(entry, table, filled, mode="sum").view(*taken.shape, -1)
        values = self._spread(self._told(points), slot, taken).flatten(2)
        return F.linear(values, told.flatten(1), self.project.bias) + summed

    def _means(
        self, at: Float[Tensor, "b n g s"], taken: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b n s"]:
        count, total = taken[..., None], at.sum(2)
        if self.coordinates == "centre":
            return total / count.clamp(min=1)
        last = (count - 1).clamp(min=0)[..., None].expand(-1, -1, 1, at.shape[-1])
        last = at.gather(2, last)[:, :, 0]
        return torch.where(count > 0, (total + (self.group - count) * last) / self.group, 0)
