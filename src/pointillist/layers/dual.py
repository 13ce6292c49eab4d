"""The dual form of a state space: where a head has one decay, a chunk of steps is attention."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pointillist.layers.coordinates import in_float32
from pointillist.types import InputError


def dual_scan(
    x: Float[Tensor, "b l h p"],
    decay: Float[Tensor, "b l h"],
    B: Float[Tensor, "b l g n"],
    C: Float[Tensor, "b l g n"],
    start: Float[Tensor, "b h p n"] | None = None,
    chunk: int = 32,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"]]:
    """y_t = h_t C_t of h_t = exp(decay_t) h_{t-1} + x_t B_t, and the last h (Dao, Gu 2405.21060).

    With s_t the sum of decays since the chunk began, y_t is

        sum over i <= t of exp(s_t - s_i) <C_t, B_i> x_i    +    exp(s_t) h_start C_t,

    three matrix products. g is h, or 1 where heads share B and C. `decay` is 0 or below, so that no
    exponential here is above 1. The state is float32 at least, and x holds the step already: x_t
    is dt_t times the input.
    """
    if chunk < 1 or x.shape[1] < 1:
        raise InputError(f"chunk is {chunk} of {x.shape[1]} steps; both are 1 or more")
    with in_float32(x):
        kept = torch.promote_types(x.dtype, torch.float32)
        length, q = x.shape[1], min(chunk, x.shape[1])
        pad = -length % q
        # Steps of nothing that decay by nothing leave the last state as it is.
        v, b, c = (
            F.pad(t.transpose(1, 2), (0, 0, 0, pad)) for t in (x.to(kept), B.to(kept), C.to(kept))
        )
        s = F.pad(decay.to(kept).transpose(1, 2), (0, pad)).unflatten(2, (-1, q)).cumsum(-1)
        v, b, c = (t.unflatten(2, (-1, q)) for t in (v, b, c))  # b h chunk q p or n

        later = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
        apart = (s[..., :, None] - s[..., None, :]).masked_fill(later, -torch.inf)
        y = (c @ b.mT * apart.exp()) @ v

        brought = v.mT @ (b * (s[..., -1:] - s).exp()[..., None])  # b h chunk p n
        h = torch.zeros_like(brought[:, :, 0]) if start is None else start.to(kept)
        starts = []
        for push, fade in zip(brought.unbind(2), s[..., -1].exp().unbind(2), strict=True):
            starts.append(h)
            h = fade[..., None, None] * h + push
        y = y + (c * s.exp()[..., None]) @ torch.stack(starts, 2).mT
        return y.flatten(2, 3)[:, :, :length].transpose(1, 2).to(x.dtype), h
