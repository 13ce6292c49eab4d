"""AdamW whose moments take a byte each (Dettmers et al. 2110.02861), by bitsandbytes on CUDA.

A block of 256 values is stored as the numbers of entries in a table, times the block's largest
value. Tensors below 4,096 values stay in float32.
"""

import importlib
import importlib.util
from typing import Any

import torch

from pointillist.types import InputError

SMALLEST = 4096  # values of a tensor whose moments are a byte each
INSTALL = "pip install 'pointillist[bits]'"


def check_eight_bit(device: torch.device) -> None:
    """InputError where moments of 8 bits cannot be computed."""
    if device.type != "cuda":
        raise InputError(
            f"optim.moments is 8bit, which is computed on CUDA alone, but the device is "
            f"{device.type}; set optim.moments=float32"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"optim.moments is 8bit, which bitsandbytes computes, but it is not installed; "
            f"{INSTALL}, or set optim.moments=float32"
        )


def eight_bit_adamw(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """AdamW8bit on `groups`, each of which has its own decay."""
    module: Any = importlib.import_module("bitsandbytes.optim")
    return module.AdamW8bit(groups, lr=lr, betas=betas, min_8bit_size=SMALLEST)


def dtype_of_moments(p: torch.Tensor, group: dict[str, Any]) -> torch.dtype:
    """What the moments of a parameter are stored as, but for 8 bytes a block of 256."""
    return torch.uint8 if group.get("bits") == 8 and p.numel() >= SMALLEST else p.dtype
