"""The selective scan of a state-space model whose steps depend on its input."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..types import InputError


class _Rooms:
    """The tensors of a chunk, made once: fresh pages for every chunk cost more than the sums."""

    def __init__(self, x: Tensor, A: Tensor, chunk: int, count: int) -> None:
        shape = (min(chunk, len(x)), *x.shape[1:3], *A.shape[1:])
        self.all = [x.new_empty(shape) for _ in range(count)]

    def of(self, steps: int) -> list[Tensor]:
        return [room[:steps] for room in self.all]


def _states(
    a: Tensor, h: Tensor, start: Tensor, dt: Tensor, u: Tensor, A: Tensor, B: Tensor
) -> None:
    """a_t = exp(dt_t A) and h_t = a_t h_{t-1} + B_t u_t, written into `a` and `h`."""
    torch.mul(dt[..., None, :], A, out=a).exp_()
    torch.mul(u[..., None, :], B[..., None], out=h)
    before = start
    for now, keep in zip(h.unbind(), a.unbind(), strict=True):
        before = now.addcmul_(keep, before)  # a step is one fused operation


def _rows(vector: Tensor, matrix: Tensor, out: Tensor) -> None:
    """out = vector @ matrix of every step, sample and group: `n`, `n k`, `k`."""
    torch.bmm(
        vector.flatten(0, -2)[:, None], matrix.flatten(0, -3), out=out.flatten(0, -2)[:, None]
    )


def _columns(matrix: Tensor, vector: Tensor, out: Tensor) -> None:
    """out = matrix @ vector of every step, sample and group: `n k`, `k`, `n`."""
    torch.bmm(
        matrix.flatten(0, -3), vector.flatten(0, -2)[..., None], out=out.flatten(0, -2)[..., None]
    )


class _Scan(torch.autograd.Function):
    """The scan in chunks of time. Time is first, channels are `g k`, groups of k, and come last.

    Of the states, `b g n k`, only those between chunks are kept; backward computes the others
    again. With g_t the gradient of h_t and u_t = dt_t x_t,

        g_t = a_{t+1} g_{t+1} + C_t dy_t    du_t = <B_t, g_t>    d(dt_t A) = a_t h_{t-1} g_t
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int
    ) -> Tensor:
        y, u, rooms = torch.empty_like(x), dt * x, _Rooms(x, A, chunk, 2)
        starts = x.new_zeros(-(-len(x) // chunk), *x.shape[1:3], *A.shape[1:])
        for i, start in enumerate(starts):
            at = slice(i * chunk, (i + 1) * chunk)
            a, h = rooms.of(len(x[at]))
            _states(a, h, start, dt[at], u[at], A, B[at])
            _rows(C[at], h, y[at])
            if i + 1 < len(starts):
                starts[i + 1] = h[-1]
        ctx.save_for_backward(x, dt, A, B, C, starts)
        ctx.chunk = chunk
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, starts = ctx.saved_tensors
        dy = dy.contiguous()
        u, du, ddt = dt * x, torch.empty_like(x), torch.empty_like(x)
        dA, dB, dC = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
        carried, rooms = torch.zeros_like(starts[0]), _Rooms(x, A, ctx.chunk, 3)
        for i in reversed(range(len(starts))):
            at = slice(i * ctx.chunk, (i + 1) * ctx.chunk)
            a, h, g = rooms.of(len(x[at]))
            _states(a, h, starts[i], dt[at], u[at], A, B[at])
            _columns(h, dy[at], dC[at])
            torch.mul(dy[at][..., None, :], C[at][..., None], out=g)
            g[-1] += carried
            steps, after = list(zip(g.unbind(), a.unbind(), strict=True)), None
            for now, keep in reversed(steps):
                if after is not None:
                    now.addcmul_(*after)
                after = (keep, now)
            torch.mul(a[0], g[0], out=carried)
            _columns(g, u[at], dB[at])
            _rows(B[at], g, du[at])
            a.mul_(g)
            a[1:].mul_(h[:-1])
            a[0].mul_(starts[i])
            torch.sum(torch.mul(a, A, out=h), -2, out=ddt[at])
            dA += a.mul_(dt[at][..., None, :]).sum((0, 1))
        return du * dt, ddt.addcmul_(du, x), dA, dB, dC, None


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
    rows = A.to(kept).unflatten(0, (g, -1)).mT.contiguous()
    y = _Scan.apply(u, step, rows, *first[2:], chunk)
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
