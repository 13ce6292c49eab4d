"""Multi-head self-attention."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.dropout import Dropout
from pointillist.layers.fused import Fused
from pointillist.layers.norm import RMSNorm
from pointillist.layers.rope import Rotation, rotate
from pointillist.types import InputError


class SelfAttention(nn.Module):
    """Fused q, k, v; optional RMSNorm of each head's q and k before an optional rotation.

    The norm comes before the rotation because its per-entry gain does not commute with turning.
    `dropout` acts on what comes out, not on the attention weights; `bias` is that of q, k and v.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        qk_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Fused(width, 3 * width, parts=3, bias=bias)
        self.out = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None
    ) -> Float[Tensor, "b n d"]:
        qkv = rearrange(self.qkv(x), "b n (three h e) -> three b h n e", three=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v)
        out = self.out(rearrange(mixed, "b h n e -> b n (h e)"))
        return self.dropout(out)


def attend(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h m e"],
    v: Float[Tensor, "b h m e"],
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T / sqrt(e)) v.

    torch's fused form for bfloat16 on the CPU has a slow backward: up to 256 tokens the three plain
    steps take a quarter to four fifths of its time (`bench/layers.py`).
    """
    if v.device.type == "cpu" and v.dtype == torch.bfloat16 and q.shape[2] <= 256:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def check_heads(width: int, heads: int, field: str = "model", pairs: bool = True) -> None:
    """Raise InputError where the width does not split into heads, of even size if in `pairs`."""
    if width % heads:
        raise InputError(f"{field}.width {width} is not divisible by {field}.heads {heads}")
    if pairs and width // heads % 2:
        raise InputError(
            f"{field}.width {width} over {heads} heads gives odd heads of {width // heads}; "
            f"rotation and position codes need pairs"
        )


def zero_(*layers: nn.Module) -> None:
    """Zero the weight and bias of each layer (adaLN-Zero starts every block as the identity)."""
    with torch.no_grad():
        for layer in layers:
            for p in layer.parameters():
                p.zero_()
