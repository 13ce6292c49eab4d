"""Noise that is a function of the coordinates: white noise, smoothed by a Gaussian.

One normal lies on every node of a lattice; at a place they are summed with the weights
g = exp(-|x - node|^2/(2 length^2)) over sqrt(sum g^2), so that the variance is 1 at every place.
The correlation of two is exp(-d^2/(4 length^2)), to 1e-4 of it. The lattice is fixed by `length`
alone, so the same seed and sample are the same function on every grid and at any places.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pointillist.draws import Draw
from pointillist.types import InputError, State

MOST_NODES = 2**22


def nodes(length: float) -> Float[Tensor, " n"]:
    """The lattice along one axis: no further apart than `length`, to 4 lengths beyond [-1, 1]."""
    reach = 1 + 4 * length
    return torch.linspace(-reach, reach, math.ceil(2 * reach / length) + 1, dtype=torch.float64)


def weights(at: Float[Tensor, "*b"], length: float) -> Float[Tensor, "*b n"]:
    """Of every node for every place along one axis, their squares summing to 1."""
    far = (at.double()[..., None] - nodes(length).to(at.device)) / length
    return torch.softmax(-far.square(), -1).sqrt()


def centres(n: int) -> Float[Tensor, " n"]:
    """Of n cells of [-1, 1]."""
    return (2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1


def smooth_noise(
    draw: Draw,
    shape: tuple[int, ...],
    length: float,
    purpose: str,
    where: Float[Tensor, "b k s"] | None = None,
) -> State:
    """The function at the centres of a grid of `shape` = (c, *space), or at its places `where`."""
    axes = len(shape) - 1 if where is None else where.shape[-1]
    # Kept in floats: the count of so fine a lattice has hundreds of digits.
    if (2 / length + 9) ** axes > MOST_NODES:
        raise InputError(
            f"objective.noise_length is {length:g}, which needs more than {MOST_NODES} nodes on "
            f"{axes} axes; set a larger one, or 0 for white noise"
        )
    device = draw.index.device
    value = draw.normal(purpose, (shape[0], *[len(nodes(length))] * axes)).double()
    if where is None:
        for axis, n in enumerate(shape[1:], start=2):
            rows = weights(centres(n).to(device), length)
            value = torch.tensordot(value, rows, ([axis], [1])).movedim(-1, axis)
        return value.float()
    first, *others = weights(where.to(device), length).unbind(2)
    value = torch.einsum("bkn,bcn...->bck...", first, value)
    for rows in others:
        value = torch.einsum("bkn,bckn...->bck...", rows, value)
    return value.float().unflatten(2, shape[1:])  # a crop of a field is a grid, with its places
