"""The selective scan of a state-space model whose steps depend on its input."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..types import InputError


def _states(a: Tensor, pushed: Tensor, h: Tensor) -> Tensor:
    """`pushed`, overwritten by h_t = a_t h_{t-1} + pushed_t; a step is one fused operation."""
    for now, keep in zip(pushed, a, strict=True):
        h = now.addcmul_(keep, h)
    return pushed


class _Scan(torch.autograd.Function):
    """The scan in chunks of time; time is first, and channels are `g k`, groups of k.

    Of the states only those between chunks are kept; backward computes the others again. With g_t
    the gradient of h_t and u_t = dt_t x_t,

        g_t = a_{t+1} g_{t+1} + C_t dy_t    du_t = <B_t, g_t>    d(dt_t A) = a_t h_{t-1} g_t
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int
    ) -> Tensor:
        h = x.new_zeros(*x.shape[1:], A.shape[-1])
        starts, y = [], torch.empty_like(x)
        for i in range(0, len(x), chunk):
            at = slice(i, i + chunk)
            starts.append(h)
            a = (dt[at, ..., None] * A).exp_()
            states = _states(a, (dt[at] * x[at])[..., None] * B[at, :, :, None], h)
            y[at] = (states @ C[at, ..., None]).squeeze(-1)
            h = states[-1].clone()
        ctx.save_for_backward(x, dt, A, B, C, *starts)
        ctx.chunk = chunk
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, *starts = ctx.saved_tensors
        dx, ddt, dA = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(A)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        carried = torch.zeros_like(starts[0])
        for n in reversed(range(len(starts))):
            at = slice(n * ctx.chunk, (n + 1) * ctx.chunk)
            a = (dt[at, ..., None] * A).exp_()
            u = dt[at] * x[at]
            states = _states(a, u[..., None] * B[at, :, :, None], starts[n])
            dC[at] = (dy[at, ..., None, :] @ states).squeeze(-2)
            g = dy[at, ..., None] * C[at, :, :, None]
            g[-1] += carried
            for t in range(len(g) - 2, -1, -1):
                g[t].addcmul_(a[t + 1], g[t + 1])
            carried = a[0] * g[0]
            dB[at] = (u[..., None, :] @ g).squeeze(-2)
            du = (g @ B[at, ..., None]).squeeze(-1)
            a.mul_(g)
            a[1:].mul_(states[:-1])
            a[0].mul_(starts[n])
            dx[at] = du * dt[at]
            ddt[at] = du * x[at] + (a * A).sum(-1)
            dA += (a * dt[at, ..., None]).sum((0, 1))
        return dx, ddt, dA, dB, dC, None


def selective_scan(
    x: Float[Tensor, "b l d"],
    dt: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l g n"],
    C: Float[Tensor, "b l g n"],
    D: Float[Tensor, " d"] | None = None,
    chunk: int = 64,
) -> Float[Tensor, "b l d"]:
    """y_t = C_t h_t + D x_t of h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, from h = 0.

    Each of g groups of consecutive channels has its B and C. The state is float32 at least, since
    products of thousands of decays near one do not survive fewer bits. First-order gradients only.
    """
    d, g = x.shape[-1], B.shape[2]
    if d % g:
        raise InputError(f"B has {g} groups, which do not divide {d} channels; give a divisor")
    if chunk < 1:
        raise InputError(f"chunk = {chunk} holds no step; give 1 or more")
    kept = torch.promote_types(x.dtype, torch.float32)
    first = [v.to(kept).transpose(0, 1).contiguous() for v in (x, dt, B, C)]
    u, step = (v.unflatten(-1, (g, -1)) for v in first[:2])
    y = _Scan.apply(u, step, A.to(kept).unflatten(0, (g, -1)), *first[2:], chunk)
    y = y.flatten(2).transpose(0, 1)
    return (y if D is None else y + D * x).to(x.dtype)


def scan_plain(
    x: Float[Tensor, "b l d"],
    dt: Float[Tensor, "b l d"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "b l g n"],
    C: Float[Tensor, "b l g n"],
) -> Float[Tensor, "b l d"]:
    """`selective_scan` as its equation reads, in the dtype given: what the tests hold it to."""
    k = x.shape[-1] // B.shape[2]
    B, C = (v.repeat_interleave(k, 2) for v in (B, C))
    h, out = torch.zeros_like(A), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt * x)[:, t, :, None] * B[:, t]
        out.append((h * C[:, t]).sum(-1))
    return torch.stack(out, 1)
