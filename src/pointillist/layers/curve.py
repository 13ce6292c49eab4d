"""Space-filling curves: one number for every cell of a grid, near cells with near numbers.

The Hilbert curve takes unit steps (Skilling, "Programming the Hilbert curve", AIP 707, 2004, works
in any number of axes); the Z-order or Morton curve interleaves the bits of a cell and jumps.
"""

import functools
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from pointillist.layers.embed import CPU, TABLES
from pointillist.types import InputError

Curve = Literal["hilbert", "zorder"]
LONGEST = 62  # bits of a curve's number that an int64 holds with room for sums


def curve_index(cell: Int[Tensor, "*b s"], bits: int, curve: Curve) -> Int[Tensor, " *b"]:
    """The number of each cell along the curve that fills 2^bits cells on each of the s axes.

    A finer curve visits the cells of a coarser one in its order: the number of a cell is that of
    any of its parts, shifted right by s bits for every halving.
    InputError where a number needs more than 62 bits.
    """
    axes = cell.shape[-1]
    if axes * bits > LONGEST:
        raise InputError(
            f"a curve over {axes} axes of {bits} bits needs {axes * bits} bits; "
            f"at most {LONGEST} fit, so take {LONGEST // axes} bits an axis"
        )
    x = list(cell.long().unbind(-1))
    if curve == "hilbert":
        x = _transpose(x[::-1], bits)  # Skilling's first axis is the last of an array
    return _interleave(x, bits)


@functools.lru_cache(TABLES)
def curve_order(
    size: tuple[int, ...], curve: Curve, device: torch.device = CPU
) -> Int[Tensor, " k"]:
    """Row-major numbers of all cells of a grid, in the order in which the curve visits them.

    The curve is that of the smallest power of two that encloses the grid on every axis; cells that
    do not exist are passed over. The table is kept and shared: do not write into it.
    """
    bits = (max(size) - 1).bit_length()
    axes = torch.meshgrid(*(torch.arange(n, device=CPU) for n in size), indexing="ij")
    return curve_index(torch.stack(axes, -1).flatten(0, -2), bits, curve).argsort().to(device)


@functools.lru_cache(TABLES)
def curve_rank(
    size: tuple[int, ...], curve: Curve, device: torch.device = CPU
) -> Int[Tensor, " k"]:
    """The place of every cell (row-major) along the curve: the inverse of `curve_order`.

    The table is kept and shared: do not write into it.
    """
    order = curve_order(size, curve, device)
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=device))


def _transpose(x: list[Tensor], bits: int) -> list[Tensor]:
    """Skilling's AxesToTranspose: after it, interleaving bits gives the Hilbert number."""
    x = [value.clone() for value in x]
    for bit in range(bits - 1, 0, -1):
        below = (1 << bit) - 1
        for i in range(len(x)):
            high = ((x[i] >> bit) & 1).bool()
            change = (x[0] ^ x[i]) & below
            x[0] = torch.where(high, x[0] ^ below, x[0] ^ change)
            if i:
                x[i] = torch.where(high, x[i], x[i] ^ change)
    for i in range(1, len(x)):
        x[i] = x[i] ^ x[i - 1]
    turned = torch.zeros_like(x[0])
    for bit in range(bits - 1, 0, -1):
        turned ^= ((x[-1] >> bit) & 1) * ((1 << bit) - 1)
    return [value ^ turned for value in x]


def _interleave(x: list[Tensor], bits: int) -> Tensor:
    number = torch.zeros_like(x[0])
    for bit in range(bits - 1, -1, -1):
        for value in x:
            number = (number << 1) | ((value >> bit) & 1)
    return number
