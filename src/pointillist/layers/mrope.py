"""Rotations for a sequence of text and patches, over (sequence, row, column).

Multimodal rotary embedding as of Lumina-Image 2.0: the head is shared out among the axes. A token
of the text turns with its number alone, at (n, 0, 0); a patch lies at (length of the text, row,
column).
"""

import functools

import torch
from jaxtyping import Bool, Complex64
from torch import Tensor

from pointillist.layers.embed import CPU, TABLES
from pointillist.types import InputError

# One table for all samples, or one for each, the same for all heads (`b 1 n half`).
Rotations = Complex64[Tensor, "*_ n half"]


def mrope_dims(head: int, axes: int) -> tuple[int, ...]:
    """A quarter of a head for the sequence, equal shares of the rest for axes: 16, 24, 24 of 64.

    Shares are even; what does not divide goes to the sequence.
    """
    pairs = head // 2
    each = (pairs - pairs // 4) // axes
    return (2 * (pairs - axes * each), *(2 * each,) * axes)


def check_mrope(dims: tuple[int, ...], head: int, axes: int) -> None:
    """InputError unless sequence and axes have an even share each, and these fill a head."""
    wrong = len(dims) != axes + 1 or any(n < 2 or n % 2 for n in dims) or sum(dims) != head
    if wrong:
        raise InputError(
            f"model.rope_dims is {list(dims)}; give {axes + 1} even numbers of at least 2 "
            f"(sequence, then each axis) that sum to a head's width {head}, or [] for a quarter "
            f"and equal shares"
        )


@functools.lru_cache(TABLES)
def turns(
    count: int, share: int, theta: float, device: torch.device = CPU
) -> Complex64[Tensor, "count half"]:
    """e^(i place theta^(-2k/share)) at places 0, ..., count - 1. Shared: do not write into it."""
    frequency = theta ** -(torch.arange(0, share, 2, dtype=torch.float64, device=CPU) / share)
    angle = torch.arange(count, dtype=torch.float64, device=CPU)[:, None] * frequency
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def mrope(
    grid: tuple[int, ...],
    dims: tuple[int, ...],
    theta: float = 1e4,
    text: int = 0,
    mask: Bool[Tensor, "b l"] | None = None,
    device: torch.device = CPU,
) -> Rotations:
    """Tables for `text` tokens and then the patches of a grid, in steps of one at any size.

    With a mask every sample has its own table (`b 1 n half`): tokens are numbered among those that
    are there, so padding on either side moves nothing; the patches' place is their number.
    """
    where = [turns(n, share, theta, device) for n, share in zip(grid, dims[1:], strict=True)]
    still = torch.ones(text, sum(dims[1:]) // 2, dtype=torch.complex64, device=device)
    axes = []
    for i, table in enumerate(where):
        shape = [1] * len(grid)
        shape[i] = grid[i]
        axes.append(table.view(*shape, -1).expand(*grid, -1).flatten(0, -2))
    patches = torch.cat(axes, -1)
    sequence = turns(text + 1, dims[0], theta, device)
    if mask is None:
        number = torch.arange(text + 1, device=device)
    else:
        seen = mask.long().cumsum(1)
        number = torch.cat(((seen - 1).clamp(min=0), seen[:, -1:]), 1)[:, None]
    turned = sequence[number]
    lead, (n, half) = turned.shape[:-2], patches.shape
    along = torch.cat((turned[..., :-1, :], turned[..., -1:, :].expand(*lead, n, -1)), -2)
    across = torch.cat((still, patches)).expand(*lead, text + n, half)
    return torch.cat((along, across), -1)
