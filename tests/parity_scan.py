"""The scans of Mamba: the selective one, with gate, bias and softplus around it, and the dual."""

from typing import Any

import torch
from torch.nn import functional as F

from pointillist.layers.dual import dual_scan
from pointillist.layers.mamba import Mamba
from pointillist.layers.scan import selective_scan
from tests.parity_case import Case, match_gradients


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


NAMES = {"in_proj": "enter", "conv1d": "ahead.conv", "x_proj": "ahead.select",
         "dt_proj": "ahead.step", "out_proj": "out", "A_log": "ahead.log_a",
         "D": "ahead.skip"}  # fmt: skip


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names; A is one row here, and the convolution has no axis of one."""
    named = {}
    for name, value in state.items():
        first, dot, rest = name.partition(".")
        value = value.flatten() if first == "A_log" else value
        value = value[:, 0] if name == "conv1d.weight" else value
        named[NAMES[first] + dot + rest] = value
    return named


def block(case: Case) -> None:
    c = case.constructor
    rank = 0 if c["dt_rank"] == "auto" else c["dt_rank"]
    more = {"bias": c.get("bias", False), "conv_bias": c.get("conv_bias", True)}
    model = Mamba(c["d_model"], c["d_state"], c["expand"], c["d_conv"], rank, **more)
    model.load_state_dict(rename(case.weights))
    h = case.io["in.hidden_states"].requires_grad_()
    out = model(h)
    case.match("out", out)
    (out * case.io["cotangent"]).sum().backward()
    assert h.grad is not None
    case.match("grad.in.hidden_states", h.grad)
    match_gradients(case, model, rename)


FAMILIES: dict[tuple[str, str], Any] = {
    ("state-spaces/mamba", "selective_scan_ref"): scan,
    ("state-spaces/mamba", "Mamba"): block,
    ("state-spaces/mamba", "ssd_minimal_discrete"): dual,
}
