"""Multi-head self-attention."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pointillist.layers.attend import attend, first_keys
from pointillist.layers.cross_attention import Keys
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
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation | None = None,
        beside: Keys | None = None,
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """`beside`: keys of others, which go first; `mask`: which of the first l keys are there."""
        q, k, v = self.split(x, rotation)
        if beside is not None:
            k = torch.cat((beside.k.to(k.dtype), k), 2)
            v = torch.cat((beside.v.to(v.dtype), v), 2)
        return self.join(attend(q, k, v, first_keys(mask, k.shape[2])))

    def split(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Queries, keys and values of every head."""
        qkv = rearrange(self.qkv(x), "b n (three h e) -> three b h n e", three=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q.to(v.dtype), k.to(v.dtype), v

    def join(self, mixed: Float[Tensor, "b h n e"]) -> Float[Tensor, "b n d"]:
        """What the heads found, as one answer a token."""
        return self.dropout(self.out(rearrange(mixed, "b h n e -> b n (h e)")))


def check_heads(width: int, heads: int, field: str = "model", pairs: bool = True) -> None:
    """Raise InputError where the width does not split into heads, of even size if in `pairs`."""
    if width % heads:
        raise InputError(f"{field}.width {width} is not divisible by {field}.heads {heads}")
    if pairs and width // heads % 2:
        raise InputError(
            f"{field}.width {width} over {heads} heads gives odd heads of {width // heads}; "
            f"rotation and position codes need pairs"
        )


def xavier_(*roots: nn.Module) -> None:
    """Xavier for the weight of every linear layer within, zero for its bias."""
    for root in roots:
        for module in root.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def zero_(*layers: nn.Module) -> None:
    """Zero the weight and bias of each layer (adaLN-Zero starts every block as the identity)."""
    with torch.no_grad():
        for layer in layers:
            for p in layer.parameters():
                p.zero_()
