"""Stand-in until the real one lands."""

import torch
from torch import Tensor


def splat(seen: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of what is seen everywhere else."""
    axes = tuple(range(2, seen.dim()))
    mean = (seen * density).sum(axes, keepdim=True) / density.sum(axes, keepdim=True).clamp(
        min=1e-6
    )
    return torch.where(density > 0, seen, mean), seen
