"""The decoder of PixNerd (arXiv 2507.23268, section 3.3): a patch's token writes a small field.

A neural field is an MLP from a place, and here the noisy colour found there, to an answer. Its
weights are linear in the token of the patch, so every patch has a field of its own, and a field can
be asked anywhere in its patch: on the grid of the training or between its cells. No cell sees
another but through the token.
"""

import functools
import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pointillist.layers.embed import CPU, TABLES
from pointillist.layers.fused import Fused
from pointillist.layers.norm import RMSNorm

Coordinates = Literal["centre", "corner"]
Code = Literal["dct", "rotary"]
WeightNorm = Literal["both", "first", "none"]
Cells = Float[Tensor, "k m e"]  # k patches of the whole batch, m cells each


# Where the cells of a patch lie, and the code of a place.


def places(
    edge: int, axes: int, coordinates: Coordinates, device: torch.device = CPU
) -> Float[Tensor, "m s"]:
    """The edge^axes cells of a patch, row-major, in [0, 1] along each axis, in float64.

    Centres, (i + .5)/edge, nest: a cell of an edge of p is the mean of those that take its place at
    2p. Corners, i/(edge - 1), as published, do not: the outer cells of two neighbouring patches lie
    on one place, at any edge.
    """
    steps = torch.arange(edge, dtype=torch.float64, device=device)
    ticks = (steps + 0.5) / edge if coordinates == "centre" else steps / max(edge - 1, 1)
    return torch.stack(torch.meshgrid(*[ticks] * axes, indexing="ij"), -1).flatten(0, -2)


def code_of(
    at: Float[Tensor, "m s"], code: Code, bands: int, theta: float, span: float = 16.0
) -> Tensor:
    """Features of each place, `m f`, in the precision of `at`.

    dct: products over the axes of cos(pi f x), f evenly from 0 to `bands`, over 1 + the product of
    their f (Eq. 12; the weight as released): bands^axes of them. rotary: the cosines alone of a
    rotary code with bands^2/2 frequencies an axis, in which a patch reaches from 0 to `span`, as in
    the decoders of PixNerd's text models. The last axis comes first in both.
    """
    columns = at.flip(-1)
    if code == "rotary":
        half = bands**2 // 2
        steps = torch.arange(half, dtype=at.dtype, device=at.device)
        angle = span * columns[:, None] * theta ** (-steps / half)[:, None]
        return angle.cos().flatten(1)
    f = torch.linspace(0, bands, bands, dtype=at.dtype, device=at.device)
    waves, weight = torch.ones_like(at[:, :1]), torch.ones_like(f[:1])
    for column in columns.unbind(1):
        wave = (math.pi * column[:, None] * f).cos()
        waves = (waves[:, :, None] * wave[:, None]).flatten(1)
        weight = (weight[:, None] * f).flatten()
    return waves / (1 + weight)


@functools.lru_cache(TABLES)
def _table(
    edge: int, axes: int, coordinates: Coordinates, code: Code, bands: int, theta: float,
    span: float, device: torch.device,
) -> Float[Tensor, "m f"]:  # fmt: skip
    """The code of a patch's own cells. It is kept and shared: do not write into it."""
    return code_of(places(edge, axes, coordinates), code, bands, theta, span).float().to(device)


# A layer whose weights are different for every patch.


class _WrittenMLP(torch.autograd.Function):
    """SiLU(h W1 / |W1|) W2 / |W2| for every patch, norms down the columns; keeps h and W alone.

    A unit column is as good as an answer divided by the column's norm, so normalised weights are
    never made: W is the largest activation of the model, 2 d^2 r numbers a patch. What lies between
    is computed again in backward. With P the gradient of a normalised weight over its norm n,

        dW = P - W <W, P> / n^2, column by column.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, first: bool, second: bool) -> Tensor:
        w1, w2 = _halves(w, h.shape[2])
        inverse1, inverse2 = _inverse(w1, first), _inverse(w2, second)
        ctx.save_for_backward(h, w, inverse1, inverse2)
        between = F.silu(_scaled(torch.bmm(h, w1), inverse1), inplace=True)
        return _scaled(torch.bmm(between, w2), inverse2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        h, w, inverse1, inverse2 = ctx.saved_tensors
        w1, w2 = _halves(w, h.shape[2])
        between = _scaled(torch.bmm(h, w1), inverse1)
        g = g.to(h.dtype) if inverse2 is None else g.to(h.dtype) * inverse2
        d_w = torch.empty_like(w)
        d_w1, d_w2 = _halves(d_w, h.shape[2])
        _write(d_w2, torch.bmm(F.silu(between).mT, g), w2, inverse2)
        d_between = torch.ops.aten.silu_backward(torch.bmm(g, w2.mT), between)
        d_between = _scaled(d_between, inverse1)
        _write(d_w1, torch.bmm(h.mT, d_between), w1, inverse1)
        return torch.bmm(d_between, w1.mT), d_w, None, None


def _halves(w: Float[Tensor, "k w"], width: int) -> tuple[Tensor, Tensor]:
    """W1 (d, r d) and W2 (r d, d) of every patch."""
    w1, w2 = w.unflatten(1, (2, -1)).unbind(1)
    return w1.unflatten(1, (width, -1)), w2.unflatten(1, (-1, width))


def _inverse(w: Float[Tensor, "k i o"], normed: bool) -> Float[Tensor, "k 1 o"] | None:
    if not normed:
        return None
    norm = torch.linalg.vector_norm(w, dim=1, keepdim=True, dtype=torch.float32)
    return norm.clamp_(min=1e-12).reciprocal_().to(w.dtype)


def _scaled(made: Tensor, inverse: Tensor | None) -> Tensor:
    """`made` itself, times the inverse norms of the columns that made it."""
    return made if inverse is None else made.mul_(inverse)


def _write(out: Tensor, p: Tensor, w: Tensor, inverse: Tensor | None) -> None:
    """The gradient of w into `out`."""
    if inverse is None:
        out.copy_(p)
    else:
        along = (w * p).sum(1, keepdim=True).mul_(inverse.square())
        torch.addcmul(p, w, along, value=-1, out=out)


class FieldBlock(nn.Module):
    """x += SiLU(norm(x) W1) W2, with W1 and W2 linear in the patch's token (Eq. 9 to 11).

    `weight_norm`: whether the columns of both matrices, of the first or of none have length one.
    """

    def __init__(self, width: int, field_width: int, ratio: int, weight_norm: WeightNorm) -> None:
        super().__init__()
        self.first, self.second = weight_norm != "none", weight_norm == "both"
        self.norm = RMSNorm(field_width)
        self.write = Fused(width, 2 * ratio * field_width**2, parts=2)

    def forward(self, x: Cells, s: Float[Tensor, "k d"]) -> Cells:
        w = self.write(s)
        return x + _WrittenMLP.apply(self.norm(x).to(w.dtype), w, self.first, self.second)


class NeuralField(nn.Module):
    """What is `seen` at a cell, its colour first, and its place, linear, through the blocks to the
    answer there.
    """

    def __init__(
        self,
        channels: int,
        seen: int,
        axes: int,
        width: int,
        field_width: int,
        depth: int,
        ratio: int,
        weight_norm: WeightNorm,
        final_norm: bool,
        coordinates: Coordinates,
        code: Code,
        bands: int,
        theta: float,
        span: float,
    ) -> None:
        super().__init__()
        self.seen, self.axes, self.coordinates = seen, axes, coordinates
        self.code, self.bands, self.theta, self.span = code, bands, theta, span
        features = bands**axes if code == "dct" else bands**2 // 2 * axes
        self.enter = nn.Linear(seen + features, field_width)
        self.blocks = nn.ModuleList(
            FieldBlock(width, field_width, ratio, weight_norm) for _ in range(depth)
        )
        self.norm = RMSNorm(field_width) if final_norm else nn.Identity()
        self.head = nn.Linear(field_width, channels)

    def initialise(self) -> None:
        """torch's own start for what writes the fields, biases too: what all patches share."""
        for block in self.blocks:
            block.get_submodule("write").reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        cells: Float[Tensor, "k m i"],
        s: Float[Tensor, "k d"],
        edge: int,
        jitter: Float[Tensor, "m s"] | None = None,
    ) -> Float[Tensor, "k m o"]:
        """The answer at the m = edge^axes cells of every patch.

        `jitter`: how far each cell's place is moved, in cells, the same in all patches.
        """
        x = self._enter(cells, self._places(edge, jitter, cells.device))
        for block in self.blocks:
            x = block(x, s)
        return self.head(self.norm(x))

    def _places(self, edge: int, jitter: Tensor | None, device: torch.device) -> Tensor:
        if jitter is None:
            return _table(
                edge, self.axes, self.coordinates, self.code, self.bands, self.theta, self.span,
                device,
            )  # fmt: skip
        at = places(edge, self.axes, self.coordinates).float().to(device)
        step = 1 / (edge if self.coordinates == "centre" else max(edge - 1, 1))
        return code_of(at + step * jitter, self.code, self.bands, self.theta, self.span)

    def _enter(self, cells: Tensor, code: Tensor) -> Tensor:
        """The first layer, whose share of the place is the same in every patch; in float32."""
        with torch.autocast("cpu" if cells.is_meta else cells.device.type, enabled=False):
            colour, place = self.enter.weight.split((self.seen, code.shape[1]), 1)
            return F.linear(cells.float(), colour) + F.linear(code, place, self.enter.bias)
