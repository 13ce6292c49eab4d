"""The scans of Mamba: the selective one, with gate, bias and softplus around it, and the dual."""

from typing import Any

import torch
from torch.nn import functional as F

from pointillist.layers.dual import dual_scan
from pointillist.layers.scan import selective_scan
from tests.parity_case import Case


def steps(value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Published B or C as `b l g n`; a constant one has a group for every channel."""
    if value.ndim == 2:
        return value.expand(shape[0], shape[2], *value.shape)
    if value.ndim == 3:
        value = value[:, None]
    return value.permute(0, 3, 1, 2)


def scan(case: Case) -> None:
    io = case.io
    names = ("u", "delta", "A", "B", "C")
    u, delta, A, B, C = (io[f"in.{name}"].requires_grad_() for name in names)
    dt = delta if "in.delta_bias" not in io else delta + io["in.delta_bias"][:, None]
    dt = F.softplus(dt) if case.constructor["softplus"] else dt
    out = selective_scan(
        u.mT, dt.mT, A, steps(B, u.shape), steps(C, u.shape), io.get("in.D"), chunk=4
    ).mT
    out = out * F.silu(io["in.z"]) if "in.z" in io else out
    case.match("out", out)
    (out * io["cotangent"]).sum().backward()
    for name in names:
        grad = io[f"in.{name}"].grad
        assert grad is not None
        case.match(f"grad.{name}", grad)


def dual(case: Case) -> None:
    io = case.io
    given = {name: io[f"in.{name}"].requires_grad_() for name in ("X", "A", "B", "C")}
    start = io["in.initial_states"][:, 0] if "in.initial_states" in io else None
    out, last = dual_scan(*given.values(), start=start, chunk=3)
    case.match("out.Y", out)
    case.match("out.final_state", last)
    (out * io["cotangent"]).sum().backward()
    for name, value in given.items():
        assert value.grad is not None
        case.match(f"grad.{name}", value.grad)


FAMILIES: dict[tuple[str, str], Any] = {
    ("state-spaces/mamba", "selective_scan_ref"): scan,
    ("state-spaces/mamba", "ssd_minimal_discrete"): dual,
}
