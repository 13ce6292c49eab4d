"""Maps in windows that do not overlap, and back (Swin, Liu et al. 2103.14030).

A map whose size is no multiple of the window is filled up with zeros at its far ends; `inside` says
which cells are the map's own. A window that an axis does not fill is as long as the axis.
"""

import functools
import math

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from pointillist.layers.embed import CPU, TABLES


def fitted(size: tuple[int, ...], window: tuple[int, ...]) -> tuple[int, ...]:
    """The window on a map of that size: the whole of an axis that is shorter."""
    return tuple(min(n, w) for n, w in zip(size, window, strict=True))


def partition(
    x: Shaped[Tensor, "..."], window: tuple[int, ...], first: int = 1
) -> Shaped[Tensor, "..."]:
    """`b *size d` as `b n m d`: n windows of m cells, both row-major.

    The axes of space begin at `first`; any may stand before them and behind.
    """
    axes = len(window)
    size = tuple(x.shape[first : first + axes])
    window = fitted(size, window)
    missing = [-n % w for n, w in zip(size, window, strict=True)]
    if any(missing):
        behind = x.dim() - first - axes
        pads = [0, 0] * behind + [p for m in reversed(missing) for p in (0, m)]
        x = torch.nn.functional.pad(x, pads)
    for i, w in reversed(list(enumerate(window, first))):
        x = x.unflatten(i, (-1, w))
    # (n0 w0) (n1 w1) -> n0 n1 w0 w1, and one copy.
    cut = range(first, first + 2 * axes)
    x = x.permute(*range(first), *cut[::2], *cut[1::2], *range(first + 2 * axes, x.dim()))
    return x.flatten(first + axes, first + 2 * axes - 1).flatten(first, first + axes - 1)


def merge(
    windows: Shaped[Tensor, "..."], window: tuple[int, ...], size: tuple[int, ...], first: int = 1
) -> Shaped[Tensor, "..."]:
    """The map of that size behind `partition`."""
    axes = len(window)
    window = fitted(size, window)
    counts = [-(-n // w) for n, w in zip(size, window, strict=True)]
    x = windows.unflatten(first + 1, window).unflatten(first, counts)
    turned = [i for axis in range(first, first + axes) for i in (axis, axis + axes)]
    x = x.permute(*range(first), *turned, *range(first + 2 * axes, x.dim()))
    for i, n in enumerate(size, first):
        x = x.flatten(i, i + 1).narrow(i, 0, n)
    return x


@functools.lru_cache(TABLES)
def inside(
    size: tuple[int, ...], window: tuple[int, ...], device: torch.device = CPU
) -> Bool[Tensor, "n m"] | None:
    """Which cells of each window the map has; None where it has all. Kept and shared."""
    if not any(n % w for n, w in zip(size, fitted(size, window), strict=True)):
        return None
    own = torch.ones((1, *size), dtype=torch.bool, device=CPU)
    return partition(own, window)[0].to(device)


@functools.lru_cache(TABLES)
def offsets(
    window: tuple[int, ...], trained: tuple[int, ...], device: torch.device = CPU
) -> Int[Tensor, "m m"]:
    """For cells i and j of a window the row of i - j in a table of all offsets of `trained`.

    The table is row-major with (2 w - 1) rows an axis, the smallest offset first. Kept and shared.
    """
    cells = [torch.arange(n, device=CPU) for n in window]
    at = torch.stack(torch.meshgrid(*cells, indexing="ij"), -1).flatten(0, -2)
    row = torch.zeros(len(at), len(at), dtype=torch.long, device=CPU)
    for axis, w in enumerate(trained):
        row = row * (2 * w - 1) + at[:, None, axis] - at[None, :, axis] + w - 1
    return row.to(device)


def offset_rows(trained: tuple[int, ...]) -> int:
    """How many rows the table of `offsets` has."""
    return math.prod(2 * w - 1 for w in trained)
