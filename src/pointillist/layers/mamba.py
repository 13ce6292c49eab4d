"""Mamba on sequences (2312.00752), one way and both ways, with the selective scan or the dual."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.cross_attention import inverse_softplus
from pointillist.layers.curve import Curve, curve_index
from pointillist.layers.dual import dual_scan
from pointillist.layers.fused import Fused
from pointillist.layers.norm import RMSNorm
from pointillist.layers.scan import selective_scan

Form = Literal["selective", "dual"]
BITS = 16  # an axis, of the cells that the curve visits
HEAD = 64  # channels of a head of the dual form, at most
PORTIONS = 4  # of a batch on a CPU, by length


def step_bias(count: int) -> Float[Tensor, " d"]:
    """What softplus turns into steps log-uniform in [1e-3, 1e-1]."""
    low, high = math.log(1e-3), math.log(1e-1)
    return inverse_softplus((low + (high - low) * torch.rand(count)).exp().clamp(min=1e-4))


class CausalConv(nn.Module):
    """Every channel's weighted sum of its last `size` steps, the present one among them."""

    def __init__(self, width: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, size).uniform_(-1, 1) / math.sqrt(size))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        size, length = self.weight.shape[1], x.shape[1]
        # As a picture of one row with its channels last, which is how x lies in memory already:
        # 1.7 times as fast, forward and backward, as adding shifted products.
        row = x.unsqueeze(1).permute(0, 3, 1, 2)
        weight = self.weight[:, None, None].to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = F.conv2d(row, weight, bias, padding=(0, size - 1), groups=x.shape[2])
        return y[:, :, 0, :length].mT


class SelectivePass(nn.Module):
    """conv, SiLU, and a scan whose step, B and C are linear in what comes in.

    The logarithms of A are one row, so that no optimiser takes them for a matrix and decays them.
    """

    def __init__(
        self, width: int, state: int, conv: int, rank: int, conv_bias: bool = True
    ) -> None:
        super().__init__()
        self.split = (rank, state, state)
        self.conv = CausalConv(width, conv, conv_bias)
        self.select = nn.Linear(width, sum(self.split), bias=False)
        self.step = nn.Linear(rank, width)
        self.log_a = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(width))
        self.skip = nn.Parameter(torch.ones(width))
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.step.bias.copy_(step_bias(width))

    def forward(
        self, x: Float[Tensor, "b l d"], valid: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        x = F.silu(self.conv(blank(x, valid)))
        step, B, C = self.select(x).split(self.split, -1)
        dt = blank(F.softplus(self.step(step).float()), valid)
        A = -self.log_a.float().exp().view(x.shape[-1], -1)
        return selective_scan(x, dt, A, B[:, :, None], C[:, :, None], self.skip)


class DualPass(nn.Module):
    """conv, SiLU, and the scan with one decay and one step a head; heads share B and C.

    Heads begin with A from -1 to -16, evenly.
    """

    def __init__(self, width: int, state: int, conv: int) -> None:
        super().__init__()
        self.heads = width // math.gcd(width, HEAD)
        self.split = (self.heads, state, state)
        self.conv = CausalConv(width, conv)
        self.select = nn.Linear(width, sum(self.split), bias=False)
        self.step = nn.Parameter(step_bias(self.heads))
        # Not by linspace: transformers may leave its own there, which knows the CPU alone.
        across = torch.arange(self.heads) / max(self.heads - 1, 1)
        self.log_a = nn.Parameter((1 + 15 * across).log())
        self.skip = nn.Parameter(torch.ones(self.heads))

    def forward(
        self, x: Float[Tensor, "b l d"], valid: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l d"]:
        x = F.silu(self.conv(blank(x, valid)))
        step, B, C = self.select(x).split(self.split, -1)
        dt = blank(F.softplus(step.float() + self.step), valid)
        heads = x.unflatten(-1, (self.heads, -1))
        decay = -dt * self.log_a.float().exp()
        y, _ = dual_scan(heads * dt[..., None], decay, B[:, :, None], C[:, :, None])
        return (y + self.skip[:, None] * heads).flatten(2).to(x.dtype)


def blank(x: Float[Tensor, "b l d"], valid: Bool[Tensor, "b l"] | None) -> Float[Tensor, "b l d"]:
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


class Mamba(nn.Module):
    """out(pass(x) SiLU(z)) of x, z = in(h): what comes later changes nothing before it.

    `rank` 0 of the step is width / 16.
    """

    def __init__(
        self,
        width: int,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        rank: int = 0,
        bias: bool = False,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        inner = expand * width
        self.enter = Fused(width, 2 * inner, parts=2, bias=bias)
        self.ahead = SelectivePass(inner, state, conv, rank or -(-width // 16), conv_bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, h: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        x, z = self.enter(h).chunk(2, -1)
        return self.out(self.ahead(x) * F.silu(z))


class BothWays(nn.Module):
    """Mamba with a pass from either end of the sequence; both share the gate and projections.

    Tokens that are not valid neither change the others nor stand between them, wherever they lie;
    what is answered there means nothing. No norm and no residual.
    """

    def __init__(
        self,
        width: int,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        form: Form = "selective",
    ) -> None:
        super().__init__()
        inner, rank = expand * width, -(-width // 16)
        self.enter = Fused(width, 2 * inner, parts=2, bias=False)
        if form == "dual":
            self.ahead: nn.Module = DualPass(inner, state, conv)
            self.back: nn.Module = DualPass(inner, state, conv)
        else:
            self.ahead = SelectivePass(inner, state, conv, rank)
            self.back = SelectivePass(inner, state, conv, rank)
        self.norm = RMSNorm(inner) if form == "dual" else nn.Identity()
        self.out = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        h: Float[Tensor, "b l d"],
        valid: Bool[Tensor, "b l"] | None = None,
        last: bool = False,
    ) -> Float[Tensor, "b l d"]:
        """`last`: what is not valid lies at the end already, as in a `Sequence`."""
        if valid is None:
            return self._mix(h, None)
        if last:
            return self._by_length(h, valid)
        order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
        mixed = self._by_length(taken(h, order), valid.gather(1, order))
        return taken(mixed, order.argsort(dim=1))

    def _by_length(
        self, h: Float[Tensor, "b l d"], valid: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b l d"]:
        """Samples of like length together, so that few steps are scanned for nothing.

        To know how many a sample has would halt a GPU.
        """
        if h.device.type != "cpu":
            return self._mix(h, valid)
        counts, order = valid.sum(1).sort(stable=True)
        portions = PORTIONS if counts[0] < counts[-1] else 1
        if portions > 1:
            h, valid = h.index_select(0, order), valid[order]
        mixed, parts = [], (one.chunk(portions) for one in (h, valid, counts))
        for part, there, n in zip(*parts, strict=True):
            least, most = int(n[0]), max(int(n[-1]), 1)
            found = self._mix(part[:, :most], there[:, :most] if least < most else None)
            mixed.append(F.pad(found, (0, 0, 0, h.shape[1] - most)))
        if portions == 1:
            return mixed[0]
        return torch.cat(mixed).index_select(0, order.argsort())

    def _mix(
        self, h: Float[Tensor, "b l d"], valid: Bool[Tensor, "b l"] | None
    ) -> Float[Tensor, "b l d"]:
        x, z = self.enter(h).chunk(2, -1)
        turned = None if valid is None else valid.flip(1)
        y = self.ahead(x, valid) + self.back(x.flip(1), turned).flip(1)
        return self.out(self.norm(y * F.silu(z)))


def taken(h: Float[Tensor, "b l d"], order: Tensor) -> Float[Tensor, "b k d"]:
    """h at the places `order`, sample by sample."""
    return h.gather(1, order[..., None].expand(-1, -1, h.shape[-1]))


class Sequence(NamedTuple):
    """Observed points and places that are asked, in the order of a space-filling curve."""

    order: Int[Tensor, "b l"]  # of the points and, after them, the places
    slot: Int[Tensor, "b k"]  # of every place in that order
    valid: Bool[Tensor, "b l"] | None  # in that order

    def of(
        self, points: Float[Tensor, "b m d"] | None, places: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b l d"]:
        """Tokens of both, in order."""
        if points is not None:
            points = points.to(places.dtype).expand(places.shape[0], -1, -1)
            places = torch.cat((points, places), 1)
        return taken(places, self.order.expand(places.shape[0], -1))

    def places(self, h: Float[Tensor, "b l d"]) -> Float[Tensor, "b k d"]:
        """The tokens of the places."""
        return taken(h, self.slot.expand(h.shape[0], -1))

    def there(self, b: int) -> Bool[Tensor, "b l"] | None:
        """`valid` for a batch of b."""
        return None if self.valid is None else self.valid.expand(b, -1)


def sequence_of(
    where: Float[Tensor, "b k s"],
    at: Float[Tensor, "b m s"] | None,
    told: Bool[Tensor, "b m"] | None,
    curve: Curve,
) -> Sequence:
    """The order of points `at`, of which those not `told` come last, and of places `where`."""
    number, valid = _number(where, curve), None
    if at is not None and told is not None:
        theirs = _number(at, curve).masked_fill(~told, torch.iinfo(torch.long).max)
        number = torch.cat((theirs, number), 1)
        valid = torch.cat((told, told.new_ones(where.shape[:2])), 1)
    order = number.argsort(dim=1, stable=True)
    slot = order.argsort(dim=1)[:, -where.shape[1] :]
    return Sequence(order, slot, None if valid is None else valid.gather(1, order))


def _number(at: Float[Tensor, "b m s"], curve: Curve) -> Int[Tensor, "b m"]:
    cells = 1 << BITS
    cell = ((at.double() + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
    return curve_index(cell, BITS, curve)
