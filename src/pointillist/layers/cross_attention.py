"""Attention of queries to tokens of another kind, some of which may be missing."""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.attend import attend
from pointillist.layers.fused import Fused
from pointillist.layers.mlp import MLP, SwiGLU
from pointillist.layers.norm import RMSNorm


class Keys(NamedTuple):
    """What queries need of the tokens; made once where the tokens stay the same."""

    k: Float[Tensor, "b h m e"]
    v: Float[Tensor, "b h m e"]


def split_keys(kv: Float[Tensor, "b m two_d"], heads: int) -> Keys:
    """Keys and values of every head, from one projection that holds both."""
    return Keys(*rearrange(kv, "b m (two h e) -> two b h m e", two=2, h=heads).unbind(0))


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(e) + bias) v over the tokens that are there.

    A sample none of whose tokens is there gets exactly zero, and gradients of zero. Keys of one row
    serve every sample of a batch.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = Fused(width, 2 * width, parts=2)
        self.out = nn.Linear(width, width)

    def keys(self, tokens: Float[Tensor, "b m d"]) -> Keys:
        return split_keys(self.kv(tokens), self.heads)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        keys: Keys,
        mask: Bool[Tensor, "_ m"] | None = None,
        bias: Float[Tensor, "_ h n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """mask: true where a token is there; bias: added to the scores."""
        q = rearrange(self.q(x), "b n (h e) -> b h n e", h=self.heads)
        k, v = (t.to(q.dtype).expand(q.shape[0], -1, -1, -1) for t in keys)
        some, scores = None, None
        if mask is not None:
            some = mask.any(-1)[:, None, None]
            # Where nothing is there, everything is looked at and then forgotten: no softmax of
            # nothing, hence no NaN either way.
            scores = (mask | ~some[..., 0])[:, None, None]
        if bias is not None:
            bias = bias.to(q.dtype)
            scores = bias if scores is None else bias.masked_fill(~scores, -torch.inf)
        mixed = attend(q, k, v, scores)
        out = self.out(rearrange(mixed, "b h n e -> b n (h e)"))
        return out if some is None else torch.where(some, out, 0)


class DistanceBias(nn.Module):
    """-softplus(s_h) times the distance of query and token: near tokens count for more.

    One scale a head, 1 at the start. softplus keeps it positive: a head can stop caring about
    distance, but not come to prefer what is far.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(inverse_softplus(torch.ones(heads)))

    def forward(self, distance: Float[Tensor, "b n m"]) -> Float[Tensor, "b h n m"]:
        return -F.softplus(self.scale)[:, None, None] * distance[:, None]


def inverse_softplus(x: Tensor) -> Tensor:
    """y with softplus(y) = x, for x above 0."""
    return x + torch.log(-torch.expm1(-x))


class CrossBlock(nn.Module):
    """q += attention(LN q, LN tokens), then q += MLP(LN q), with GELU.

    `biased`: the attention prefers near tokens (`DistanceBias`) where distances are given.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, biased: bool = False) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.bias = DistanceBias(heads) if biased else None
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), exact=True)

    def keys(self, tokens: Float[Tensor, "b m d"]) -> Keys:
        return self.attention.keys(self.norm_kv(tokens))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        keys: Keys,
        mask: Bool[Tensor, "_ m"] | None = None,
        distance: Float[Tensor, "_ n m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        bias = None if self.bias is None or distance is None else self.bias(distance)
        x = x + self.attention(self.norm_q(x), keys, mask, bias)
        return x + self.mlp(self.norm_mlp(x))


class TokenBlock(nn.Module):
    """x += attention(norm x) among the tokens that are there, then x += SwiGLU(norm x); RMSNorm.

    Tokens that are not there come out as zeros.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = CrossAttention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, int(width * mlp_ratio), bias=False)

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "_ n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        h = self.norm1(x)
        x = x + self.attention(h, self.attention.keys(h), mask)
        x = x + self.mlp(self.norm2(x))
        return x if mask is None else x.masked_fill(~mask[..., None], 0)
