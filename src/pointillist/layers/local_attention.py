"""Attention of places to the points near them, at a cost that grows with their number alone.

A place x_q weighs a neighbour x_k, u = (|x_q - x_k|/edge)^2 of the way to the edge of its
neighbourhood, by

    w = (1 - u)^2 exp(q R(x_k - x_q) k / sqrt(e) - softplus(s_h) u),

divided by the sum over its neighbours and a learned null. R turns pairs of channels by angles
linear in the offset (Su et al. 2104.09864, with frequencies drawn once); values are turned by it
too (Miyato et al. 2310.10375), so that keys and values are those of relative places. The weight
fades to 0 at the edge, so an answer is continuous in its place although neighbours come and go.
"""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Complex64, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.attention import check_heads
from pointillist.layers.coordinates import in_float32
from pointillist.layers.cross_attention import Keys, inverse_softplus
from pointillist.layers.curve import curve_index
from pointillist.layers.fused import Fused
from pointillist.layers.neighbours import Neighbours
from pointillist.layers.norm import RMSNorm
from pointillist.layers.perceiver import gaussian_frequencies
from pointillist.layers.rope import rotate

Turn = Complex64[Tensor, "b 1 n half"]  # e^(i angle) for every place and pair of a head

Sets = list[tuple[Tensor, Neighbours]]  # places `b m s` of points, and which of them are near

BLOCK = 64  # places that are answered together on a CPU
FLAT = 256  # up to so many squared edges of extent, u is a difference of products in float32
HELD = 1 << 25  # numbers gathered at once where no gradient is asked for


class Blocks(NamedTuple):
    """The same pairs, for blocks of places that lie together: matrices, and no gather of pairs.

    Every block has the tokens that are near any of its places, in a row of `token`.
    """

    order: Int[Tensor, "b slots"] | None  # the place in every slot of the blocks; None: as they are
    slot: Int[Tensor, "b k"] | None  # where each place is in that order
    token: Int[Tensor, "blocks m"]  # of its sample; the null last, which follows on all tokens
    fade: Float[Tensor, "blocks 1 t m"]  # log((1 - u)^2), -inf where no neighbour is; the null last
    query: Float[Tensor, "blocks 1 t f"]  # factors of u
    key: Float[Tensor, "blocks 1 m f"]


class Pairs(NamedTuple):
    """Which of the tokens each place attends to, and how far they are; no token is meant twice."""

    index: Int[Tensor, "b k n"]  # type: ignore[assignment]
    far: Float[Tensor, "b k n"]  # u, 1 where no neighbour is
    blocks: Blocks | None

    def expand(self, b: int) -> "Pairs":
        """Those of one sample, for b that have the same places and points."""
        if self.index.shape[0] == b:
            return self
        blocks = self.blocks
        if blocks is not None:
            repeated: Any = (None if part is None else part.repeat(b, *[1] * (part.dim() - 1))
                             for part in blocks)  # fmt: skip
            blocks = Blocks(*repeated)
        return Pairs(self.index.expand(b, -1, -1), self.far.expand(b, -1, -1), blocks)


def fade_of(far: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """log((1 - u)^2), -inf where no neighbour is."""
    return 2 * torch.log1p(-far)


def turn_of(
    at: Float[Tensor, "b n s"],
    radius: float,
    head_width: int,
    std: float,
    metric: tuple[float, ...] = (),
) -> Turn:
    """Angles of places; frequencies from N(0, std^2) in cycles per radius, alike in every run."""
    with in_float32(at):
        scaled = scale_by(at.float(), metric) / radius
        b = gaussian_frequencies(at.shape[-1], head_width // 2, std, at.device)
        angle = 2 * torch.pi * scaled @ b.T
        return torch.polar(torch.ones_like(angle), angle)[:, None]


def scale_by(at: Tensor, metric: tuple[float, ...]) -> Tensor:
    return at * at.new_tensor(metric) if metric else at


def pairs_of(
    query: Float[Tensor, "b k s"],
    sets: Sets,
    metric: tuple[float, ...] = (),
) -> Pairs:
    """One table of the neighbours in several sets of points, whose tokens follow one another."""
    pairs = Pairs(*_distances(query, sets, metric), None)
    # How many tokens a block has would halt a GPU.
    if query.device.type != "cpu" or not sum(points.shape[1] for points, _ in sets):
        return pairs
    return pairs._replace(blocks=_blocks(query, sets, pairs, metric))


def far_of(
    query: Float[Tensor, "b k s"],
    points: Float[Tensor, "b m s"],
    near: Neighbours,
    metric: tuple[float, ...] = (),
) -> Float[Tensor, "b k n"]:
    """u of the neighbours in one set of points, 1 where none is."""
    return _distances(query, [(points, near)], metric)[1]


def _distances(
    query: Float[Tensor, "b k s"], sets: Sets, metric: tuple[float, ...]
) -> tuple[Int[Tensor, "b k n"], Float[Tensor, "b k n"]]:
    scaled = scale_by(query.double(), metric)
    b, k = query.shape[:2]
    index = [torch.zeros(b, k, 0, dtype=torch.long, device=query.device)]
    far, first = [torch.zeros(b, k, 0, device=query.device)], 0
    for points, near in sets:
        places = scale_by(points.double(), metric)
        square = (_rows(places, near.index) - scaled[:, :, None]).square().sum(-1)
        u = square / near.edge.double().square().clamp(min=1e-24)[..., None]
        # A distance that float32 takes for the edge itself is one of no weight.
        far.append(torch.where(near.valid, u.float().clamp(max=1), 1.0))
        index.append(near.index + first)
        first += points.shape[1]
    return torch.cat(index, -1), torch.cat(far, -1)


def _blocks(
    query: Float[Tensor, "b k s"], sets: Sets, pairs: Pairs, metric: tuple[float, ...]
) -> Blocks | None:
    """None where places of a block lie so much farther apart than its edges that u is no u."""
    b, k = query.shape[:2]
    count = sum(points.shape[1] for points, _ in sets)
    order, slot, size = None, None, k
    found, fade, at = pairs.index, fade_of(pairs.far), scale_by(query.double(), metric)
    edges = torch.stack([near.edge.double().clamp(min=1e-12) for _, near in sets], -1)
    if k > 2 * BLOCK:
        size = BLOCK
        cell = ((query.double() + 1) * 2**15).floor().long().clamp(0, 2**16 - 1)
        order = curve_index(cell, 16, "hilbert").argsort(dim=1)
        slot = order.argsort(dim=1)
        order = torch.cat((order, order[:, -1:].expand(-1, -k % size)), 1)
        found, fade, at, edges = (_rows(part, order) for part in (found, fade, at, edges))
    found, fade, at, edges = (
        part.unflatten(1, (-1, size)).flatten(0, 1) for part in (found, fade, at, edges)
    )
    # The tokens of a block: its pairs in order of their tokens, those of no neighbour behind.
    meant = found.masked_fill(fade.isinf(), count).flatten(1)
    ordered, place = meant.sort(dim=1)
    new = ordered.diff(dim=1, prepend=torch.full_like(ordered[:, :1], -1)) > 0
    new &= ordered < count
    n = max(int(new.sum(1).max()), 1)
    rank = torch.where(ordered < count, new.cumsum(1) - 1, n)
    token = torch.zeros(len(rank), n + 1, dtype=torch.long).scatter_(1, rank, ordered)[:, :n]
    column = torch.empty_like(rank).scatter_(1, place, rank).view_as(found)
    matrix = torch.full((*found.shape[:2], n + 1), -torch.inf)
    matrix.scatter_reduce_(2, column, fade, "amax")
    matrix[..., -1] = 0
    # u = (|a|^2 - 2 a b + |b|^2)/edge^2 with a, b from the middle of the block; a set each.
    every = torch.cat([scale_by(points.double(), metric) for points, _ in sets], 1)
    which = torch.cat([torch.full((p.shape[1],), i) for i, (p, _) in enumerate(sets)])
    middle = at.mean(1, keepdim=True)
    there = _rows(every, token.reshape(b, -1)).view(len(token), n, -1) - middle
    at = at - middle
    # A row of fewer tokens is filled up with the first one, which may lie anywhere.
    real = (matrix[..., :-1] > -torch.inf).any(1)
    there = there * real[..., None]
    here, square = at.square().sum(-1, keepdim=True), there.square().sum(-1, keepdim=True)
    narrow = edges.flatten(1).amin(1).square()
    if bool((torch.maximum(here.amax((1, 2)), square.amax((1, 2))) > FLAT * narrow).any()):
        return None
    left = torch.cat((torch.ones_like(here), -2 * at, here), -1)
    right = torch.cat((square, there, torch.ones_like(square)), -1)
    own = F.one_hot(which[token], len(sets)).double()
    token = F.pad(token, (0, 1), value=count)
    left = (left[..., None, :] / edges[..., None].square()).flatten(-2)
    right = F.pad((right[..., None, :] * own[..., None]).flatten(-2), (0, 0, 0, 1))
    return Blocks(order, slot, token, matrix[:, None], left.float()[:, None],
                  right.float()[:, None])  # fmt: skip


def _rows(tokens: Tensor, index: Int[Tensor, "b ..."]) -> Tensor:
    """Rows `b *places d` of tokens `b m d`."""
    if tokens.shape[1] == 0:  # none is meant
        return tokens.new_zeros(*index.shape, tokens.shape[2])
    flat = index.flatten(1)
    first = torch.arange(len(flat), device=index.device)[:, None] * tokens.shape[1]
    rows = tokens.flatten(0, 1).index_select(0, (flat + first).flatten())
    return rows.view(*index.shape, tokens.shape[2])


class LocalAttention(nn.Module):
    """Of places to their neighbours; `keys` of tokens that stay the same are made once.

    Queries and keys are normalised per head. The distance scales start at 1, 2, 4, ... for the
    heads in turn, so that some look far and some near.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        e = width // heads
        self.query = nn.Linear(width, width)
        self.key_value = Fused(width, 2 * width, parts=2)
        self.norm_q, self.norm_k = RMSNorm(e), RMSNorm(e)
        self.out = nn.Linear(width, width)
        start = 2.0 ** (torch.arange(heads) % 4)
        self.scale = nn.Parameter(inverse_softplus(start))
        self.null_key = nn.Parameter(torch.zeros(heads, e))
        self.null_value = nn.Parameter(torch.zeros(heads, e))

    def keys(self, tokens: Float[Tensor, "b m d"], turn: Turn) -> Keys:
        """Keys and values of tokens at places, turned by these."""
        k, v = rearrange(
            self.key_value(tokens), "b m (two h e) -> two b h m e", two=2, h=self.heads
        ).unbind(0)  # fmt: skip
        return Keys(rotate(self.norm_k(k), turn), rotate(v, turn))

    def forward(
        self, x: Float[Tensor, "b k d"], keys: Keys, pairs: Pairs, turn: Turn
    ) -> Float[Tensor, "b k d"]:
        """What the places `x`, turned by `turn`, find among the tokens of `keys`."""
        q, null = self._queries(x)
        with in_float32(x):
            turned = rotate(q, turn)
            k, v = keys.k.float(), keys.v.float()
            if pairs.blocks is not None:
                mixed, none = self._in_blocks(turned, null, k, v, pairs.blocks)
            else:
                mixed, none = self._gathered(turned, null, k, v, pairs)
            mixed = rotate(mixed, turn.conj()) + none * self.null_value[:, None]
        return self.out(rearrange(mixed, "b h k e -> b k (h e)").to(x.dtype))

    def weights(
        self, x: Float[Tensor, "b k d"], keys: Keys, pairs: Pairs, turn: Turn
    ) -> tuple[Float[Tensor, "b h k near"], Float[Tensor, "b h k 1"]]:
        """The weights of every pair, and those of the null: together 1."""
        q, null = self._queries(x)
        k = _rows(rearrange(keys.k.float(), "b h m e -> b m (h e)"), pairs.index)
        return self._weights(rotate(q, turn), null, k, pairs.far)

    def _queries(self, x: Tensor) -> tuple[Float[Tensor, "b h k e"], Float[Tensor, "b h k 1"]]:
        """Queries over sqrt(e), and their score for the null, which lies nowhere."""
        q = rearrange(self.query(x), "b k (h e) -> b h k e", h=self.heads)
        q = self.norm_q(q).float() * q.shape[-1] ** -0.5
        return q, (q * self.null_key[:, None]).sum(-1, keepdim=True)

    def _in_blocks(
        self, q: Tensor, null: Tensor, k: Tensor, v: Tensor, blocks: Blocks
    ) -> tuple[Tensor, Tensor]:
        """By factors: softplus(s) u is a product of few channels, appended to queries and keys.

        One more channel holds the score of the null in queries and keys, its weight in values.
        """
        (b, h, _, e), (count, _, size, _) = q.shape, blocks.fade.shape
        left = rearrange(torch.cat((q, null), -1), "b h k e -> b k (h e)")
        if blocks.order is not None:
            left = _rows(left, blocks.order)
        left = rearrange(left, "b (x t) (h e) -> (b x) h t e", t=size, h=h)
        slope = -F.softplus(self.scale)[:, None, None]
        left = torch.cat((left, slope * blocks.query), -1)
        token = blocks.token.reshape(b, -1)

        def of_blocks(part: Tensor, wide: int) -> Float[Tensor, "blocks h m e2"]:
            """Its rows for every block, with the channel of the null and zeros up to `wide`."""
            rows = rearrange(part, "b h m e -> b m h e")
            # Padded here, where every token is once, and not in each block that has it.
            rows = F.pad(rows, (0, wide - e, 0, 0, 0, 1))
            rows[:, -1, :, e] = 1
            rows = _rows(rows.flatten(2), token)
            return rearrange(rows, "b (x m) (h e) -> (b x) h m e", x=count // b, h=h)

        right = torch.cat((of_blocks(k, e + 1), blocks.key.expand(-1, h, -1, -1)), -1)
        value = of_blocks(v, left.shape[-1])
        mask = blocks.fade.expand(-1, h, -1, -1)
        mixed = F.scaled_dot_product_attention(left, right, value, attn_mask=mask, scale=1.0)
        mixed = rearrange(mixed[..., : e + 1], "(b x) h t e -> b (x t) (h e)", b=b)
        if blocks.slot is not None:
            mixed = _rows(mixed, blocks.slot)
        mixed = rearrange(mixed, "b k (h e) -> b h k e", h=h)
        return mixed[..., :e].contiguous(), mixed[..., e:]

    def _gathered(
        self, q: Tensor, null: Tensor, k: Tensor, v: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        k, v = (rearrange(part, "b h m e -> b m (h e)") for part in (k, v))
        n = q.shape[2]
        step = n
        if not torch.is_grad_enabled():  # else all of it is kept anyway
            b, _, near = pairs.index.shape
            step = max(1, HELD // max(1, b * near * k.shape[2]))
        mixed, none = [], []
        for part in (slice(start, start + step) for start in range(0, max(n, 1), step)):
            index, far = pairs.index[:, part], pairs.far[:, part]
            weight, rest = self._weights(q[:, :, part], null[:, :, part], _rows(k, index), far)
            value = rearrange(_rows(v, index), "b k n (h e) -> b h k n e", h=self.heads)
            mixed.append(torch.einsum("bhkn,bhkne->bhke", weight, value))
            none.append(rest)
        return torch.cat(mixed, 2), torch.cat(none, 2)

    def _weights(self, q: Tensor, null: Tensor, k: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        k = rearrange(k, "b k n (h e) -> b h k n e", h=self.heads)
        scores = torch.einsum("bhke,bhkne->bhkn", q, k)
        scores = scores - F.softplus(self.scale)[:, None, None] * far[:, None]
        scores = scores + fade_of(far)[:, None]
        weight = torch.softmax(torch.cat((scores, null), -1), -1)
        return weight[..., :-1], weight[..., -1:]


def interpolation(
    value: Float[Tensor, "b c m"], near: Neighbours, far: Float[Tensor, "b k n"]
) -> Float[Tensor, "b k c2"]:
    """A first guess at every place, and 1 where there is any: the mean of its neighbours.

    They weigh (1 - u)^2 exp(-4 u)/(u + .01): near ones most, those at the edge nothing.
    """
    weight = (1 - far).square() * torch.exp(-4 * far) / (far + 0.01)
    whole = weight.sum(-1, keepdim=True)
    mean = (weight[..., None] * _rows(value.mT, near.index)).sum(2) / whole.clamp(min=1e-12)
    # Where the one neighbour is about to leave, the guess leaves with it.
    there = whole / (whole + 0.01)
    return torch.cat((mean * there, there), -1)
