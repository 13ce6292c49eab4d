"""The optimizer and the course of its learning rate."""

import math

import torch
from torch import Tensor, nn


def adamw(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 1711.05101); norms, biases, other 1-D weights do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    # The fused form is the same arithmetic in one pass; MPS has none.
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def learning_rate(
    images: int, lr: float, warmup: int, schedule: str, total: int, final: float
) -> float:
    """Linear from 0 over `warmup` images, then constant, or a cosine to `final * lr` at `total`."""
    if images < warmup:
        return lr * images / warmup
    if schedule == "constant":
        return lr
    progress = min(1.0, (images - warmup) / max(1, total - warmup))
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer as `parameter name/entry`; empty before the first step."""
    return {
        f"{name}/{entry}": value
        for name, p in model.named_parameters()
        for entry, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]
) -> None:
    parameters = dict(model.named_parameters())
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        p = parameters[name]
        device = value.device if entry == "step" and p.device.type == "cpu" else p.device
        optimizer.state[p][entry] = value.to(device)
