"""From the state of one size to that of another, honestly: the noise stays what a network knows.

Box means over n cells an axis are the one resizing of a state that leaves its noise white. Over
N = n^s cells they leave 1/sqrt(N) of it, so a picture is clearer when it is seen smaller, and the
smaller state is one of a later time. Bilinear resizing, as in published code, leaves noise of
another strength, and not white, under the old time.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pointillist.layers.patch import patch_grid
from pointillist.objective import Interpolant
from pointillist.types import Coarse, InputError, State


def box_means(x: State, n: int) -> Coarse:
    """Means over n cells along each of one to three axes, of which n must be a divisor."""
    size = tuple(x.shape[2:])
    if any(edge % n for edge in size):
        raise InputError(f"size {'x'.join(map(str, size))} is no multiple of {n}; it has no means "
                         f"over {n} cells")  # fmt: skip
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1](x, n)


def coarsen(path: Interpolant, xt: State, t: Tensor, n: int) -> tuple[Coarse, Tensor]:
    """The state seen n times smaller, and the time at which it is one of the same path.

    With q = strength(size) / (sqrt(N) strength(size/n)) the mean is alpha x + sigma q eps of the
    smaller picture and of noise as strong as belongs to its size. t' has the signal to noise
    alpha / (sigma q), and the mean is that state times k: on the straight path t' = t/k and
    k = t + (1 - t) q. Where a path has no such time, as past the last noise of `ve`, it is the
    nearest, and the larger part of the state is kept.

    `t`: one time a sample, or one of no dimension for all.
    """
    if n == 1:
        return xt, t
    if path.noise_length:
        raise InputError(
            f"objective.noise_length is {path.noise_length:g}, but a state is seen smaller only "
            f"where its noise is white; set it to 0, or ask for the training size"
        )
    means, size = box_means(xt, n), tuple(xt.shape[2:])
    small = tuple(means.shape[2:])
    q = path.noise_strength(size) / path.noise_strength(small) / math.sqrt(n ** len(size))
    wide = t if t.device.type == "mps" else t.double()
    alpha, noise = path.alpha(wide), q * path.sigma(wide)
    later = path.at(alpha / (alpha + noise)).to(t.dtype)
    seen = later.to(wide.dtype)
    k = torch.where(alpha >= noise, path.alpha(seen) / alpha, path.sigma(seen) / noise)
    k = k.to(xt.dtype)
    return means * (k if k.dim() == 0 else k.view(-1, *[1] * (xt.dim() - 1))), later


def base_scale(size: tuple[int, ...], trained: tuple[int, ...], patch_size: int) -> int:
    """The whole factor r for which size/r fits the patches and is nearest to the trained size.

    Nearest by the logarithm of the area; of two that are equally near the smaller r. InputError,
    with a size that can be reached, where r = 1 does not fit, and so none does.
    """
    grid = patch_grid(size, patch_size)
    divisors = [r for r in range(1, min(grid) + 1) if not any(n % r for n in grid)]
    area = math.log(math.prod(size) / math.prod(trained))
    return min(divisors, key=lambda r: (round(abs(area - len(size) * math.log(r)), 9), r))
