"""Grouped-query self-attention with gates on its answer."""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.attend import attend
from pointillist.layers.fused import Fused
from pointillist.layers.mrope import Rotations
from pointillist.layers.norm import RMSNorm
from pointillist.layers.rope import rotate
from pointillist.types import InputError

Gate = Literal["none", "headwise", "elementwise"]
GateActivation = Literal["sigmoid", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "silu": F.silu}


class GroupedAttention(nn.Module):
    """`heads` queries share `kv_heads` keys and values (Ainslie et al. 2305.13245).

    q and k are normalised head by head before they are turned. A gate, one number a head or one an
    entry, is made of the tokens that come in and multiplied on the heads' answers before `out`
    (Qiu et al. 2505.06708); as published, only gates may have a bias.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        gate: Gate = "headwise",
        activation: GateActivation = "sigmoid",
        gate_bias: bool = False,
    ) -> None:
        super().__init__()
        head = width // heads
        self.heads, self.kv_heads = heads, kv_heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = Fused(width, 2 * kv_heads * head, parts=2, bias=False)
        self.q_norm = RMSNorm(head)
        self.k_norm = RMSNorm(head)
        rows = {"none": 0, "headwise": heads, "elementwise": width}[gate]
        self.gate = nn.Linear(width, rows, bias=gate_bias) if rows else None
        self.activation = ACTIVATIONS[activation]
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotations | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`mask` is true at the keys that may be seen."""
        q = rearrange(self.q(x), "b n (h e) -> b h n e", h=self.heads)
        k, v = rearrange(self.kv(x), "b n (two h e) -> two b h n e", two=2, h=self.kv_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attend_grouped(q.to(v.dtype), k.to(v.dtype), v, mask)
        mixed = rearrange(mixed, "b h n e -> b n h e")
        if self.gate is not None:
            share = self.activation(self.gate(x)).unflatten(-1, (self.heads, -1))
            mixed = mixed * share
        return self.out(mixed.flatten(2))


def attend_grouped(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b g m e"],
    v: Float[Tensor, "b g m e"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T / sqrt(e)) v, where query head h asks key head h // (heads / groups).

    The queries of one group are only more questions to the same keys: laid under one another they
    need neither repeated keys nor a kernel that knows of groups (`bench/gqa.py`).
    """
    b, h, n, e = q.shape
    seen = None if mask is None else mask[:, None, None, :]
    asked = q.reshape(b, k.shape[1], -1, e)
    return attend(asked, k, v, seen).reshape(b, h, n, e)


def check_groups(heads: int, kv_heads: int, field: str = "model") -> None:
    """InputError where keys cannot be shared out evenly among the queries."""
    if kv_heads < 1 or heads % kv_heads:
        raise InputError(f"{field}.kv_heads is {kv_heads}; it must divide {field}.heads {heads}")
