"""Scaled dot-product attention, by whichever form is fast where it runs."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

PLAIN = 256**2  # scores of a head, above which they are not kept


def attend(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h m e"],
    v: Float[Tensor, "b h m e"],
    mask: Shaped[Tensor, "#b #h #n #m"] | None = None,
) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T / sqrt(e) + mask) v; a mask of booleans is true where a key may be seen.

    Of every query that is one key at least. torch's fused form for bfloat16 on the CPU has a slow
    backward: as long as the scores of a head are few, three plain steps are faster
    (`bench/layers.py`).
    """
    slow = v.device.type == "cpu" and v.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if not slow or q.shape[2] * k.shape[2] > PLAIN:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        told = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if told else scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


def first_keys(mask: Bool[Tensor, "b l"] | None, keys: int) -> Bool[Tensor, "b 1 1 m"] | None:
    """A mask for all `keys` from one of the first of them; those after are all there."""
    if mask is None:
        return None
    return F.pad(mask, (0, keys - mask.shape[1]), value=True)[:, None, None]
