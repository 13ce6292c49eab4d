"""Rotary pairs in the order of PixNerd and PixelDiT, whose weights are published in it.

There the pairs of a head alternate between the axes, columns first; here each axis turns a part of
the head of its own, rows first (`layers/rope.py`).
"""

import torch
from torch import Tensor


def unalternate(named: dict[str, Tensor]) -> None:
    """Put q and k of every attention under our names, weights and norms, into our order."""
    for name in [name for name in named if name.endswith("q_norm.weight")]:
        order = _order(named[name].shape[0])
        stem = name.removesuffix("q_norm.weight")
        for norm in (name, stem + "k_norm.weight"):
            named[norm] = named[norm][order]
        for part in ("weight", "bias"):
            if (fused := f"{stem}qkv.{part}") in named:
                named[fused] = _reorder_heads(named[fused], order)


def _order(head: int) -> Tensor:
    """Entries of a head in our order: the pairs of the rows' axis, then those of the columns'."""
    pairs = torch.arange(head).view(-1, 2)
    return torch.cat((pairs[1::2], pairs[0::2])).flatten()


def _reorder_heads(fused: Tensor, order: Tensor) -> Tensor:
    """The rows of q and k, head by head, in another order."""
    parts = fused.unflatten(0, (3, -1, order.shape[0]))
    return torch.cat((parts[:2, :, order], parts[2:])).flatten(0, 2)
