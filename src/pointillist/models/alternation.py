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
                named[fused] = _reorder_heads(named[fused], order, 3)


def alternated(pairs: int, axes: int) -> list[int]:
    """For each pair of a head in our order its number in theirs; what is left over comes last."""
    share = pairs // axes
    first = [axes * k + axes - 1 - axis for axis in range(axes) for k in range(share)]
    return [*first, *range(axes * share, pairs)]


def _order(head: int) -> Tensor:
    """Entries of a head in our order: the pairs of the rows' axis, then those of the columns'."""
    return torch.arange(head).view(-1, 2)[alternated(head // 2, 2)].flatten()


def unalternate_keys(fused: Tensor, head: int) -> Tensor:
    """The rows of k and v, those of k in our order; heads are `head` wide."""
    return _reorder_heads(fused, _order(head), 2)


def _reorder_heads(fused: Tensor, order: Tensor, parts: int) -> Tensor:
    """All rows but those of v, which are the last part, head by head in another order."""
    rows = fused.unflatten(0, (parts, -1, order.shape[0]))
    return torch.cat((rows[:-1, :, order], rows[-1:])).flatten(0, 2)
