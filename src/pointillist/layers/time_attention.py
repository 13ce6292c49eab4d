"""Attention that time steers, and the block around it (DiffiT, Hatamizadeh et al. 2312.02139)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.dropout import Dropout
from pointillist.layers.fused import Fused
from pointillist.layers.mlp import MLP
from pointillist.layers.windows import fitted, inside, merge, offset_rows, offsets, partition


class TimeAttention(nn.Module):
    """TMSA: q, k and v are each a projection of the tokens plus one of the time token (Eq. 3-6).

    Tokens attend within windows of the map, with a learned bias for every offset in a window.
    The time token is the same for all tokens, so what it adds to the keys adds one number to all
    scores of a query and the softmax takes that away. So the key part of `time` is not added; it
    stays among the weights, where it does not move, for published ones have it.
    `dropout` acts on what comes out.
    """

    def __init__(
        self,
        width: int,
        time_width: int,
        heads: int,
        window: tuple[int, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.dropout = heads, window, Dropout(dropout)
        self.qkv = Fused(width, 3 * width, parts=3)
        self.time = Fused(time_width, 3 * width, parts=3)
        self.bias_table = nn.Parameter(torch.empty(offset_rows(window), heads))
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def bias(self, size: tuple[int, ...]) -> Float[Tensor, "h n m m"]:
        """What is added to the scores in each window of a map; n = 1 where it is the same in all.

        -inf for keys beyond the map.
        """
        device = self.bias_table.device
        rows = offsets(fitted(size, self.window), self.window, device)
        bias = self.bias_table.mT[:, rows].unsqueeze(1)
        own = inside(size, self.window, device)
        return bias if own is None else bias.masked_fill(~own[:, None], -torch.inf)

    def forward(
        self, x: Float[Tensor, "b *size d"], c: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b *size d"]:
        size = tuple(x.shape[1:-1])
        # Added, the key part and the keys' bias would have a gradient of rounding errors, by which
        # Adam and Muon move them as far as any weight, until what should cancel is too large to.
        to_q, to_k, to_v = (self.time(c) + self.qkv.bias).chunk(3, -1)
        told = torch.cat((to_q, torch.zeros_like(to_k), to_v), -1)
        qkv = F.linear(x, self.qkv.weight)
        qkv = qkv.add_(told.to(qkv.dtype).view(-1, *[1] * len(size), told.shape[-1]))  # Eq. 3-5
        parted = qkv.unflatten(-1, (3, self.heads, -1)).movedim((-3, -2), (0, 2))
        q, k, v = partition(parted, self.window, first=3).unbind(0)
        mixed = attend_biased(q, k, v, self.bias(size))  # Eq. 6
        merged = merge(mixed.movedim(1, 3), self.window, size)
        return self.dropout(self.out(merged.flatten(-2)))


def attend_biased(
    q: Float[Tensor, "b h n m e"],
    k: Float[Tensor, "b h n m e"],
    v: Float[Tensor, "b h n m e"],
    bias: Float[Tensor, "h _ m m"],
) -> Float[Tensor, "b h n m e"]:
    """softmax(q k^T / sqrt(e) + bias) v in every window by itself.

    On the CPU torch's fused form does not take a mask that learns: it falls back on these steps and
    adds passes of its own over the scores. Its kernels for CUDA do take one.
    """
    if q.is_cuda:
        return attend_fused(q, k, v, bias)
    # Expanded first: the bias' gradient is then summed over samples and windows one after the
    # other, which takes a tenth of the time of summing over both at once.
    bias = bias.expand(-1, q.shape[2], -1, -1)
    scores = torch.add(bias, q @ k.mT, alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1).to(v.dtype) @ v


def attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Float[Tensor, "b h n m e"]:
    """The same by torch's fused form: a window of a head is a head of its own there."""
    h, n = q.shape[1:3]
    mask = bias.expand(h, n, -1, -1).flatten(0, 1)[None].to(q.dtype)
    q, k, v = (part.flatten(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(1, (h, n))


class TimeBlock(nn.Module):
    """x + TMSA(LN(x), c), then x + MLP(LN(x)) (Eq. 7-8): time enters by the attention alone."""

    def __init__(
        self,
        attention: TimeAttention,
        mlp: MLP,
        norm: Callable[[int], nn.Module],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = attention.out.out_features
        self.norm1, self.attention = norm(width), attention
        self.norm2, self.mlp = norm(width), mlp
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b *size d"], c: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b *size d"]:
        x = x + self.attention(self.norm1(x), c)
        return x + self.dropout(self.mlp(self.norm2(x)))
