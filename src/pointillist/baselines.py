"""Classical interpolation of sparse pixels, without learning: what a network has to beat.

Every entry of `BASELINES` takes `seen` (b c *space) and a `mask` (b 1 *space) and gives a picture
back in which known pixels are unchanged. Cells are one unit apart on every axis; one to three axes;
any number of known pixels from one. Work is done in float64 on the CPU, picture by picture.
"""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from scipy import linalg, ndimage, sparse
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from scipy.sparse.linalg import splu
from scipy.spatial import Delaunay, QhullError
from scipy.spatial.distance import cdist
from torch import Tensor

from pointillist.types import InputError

Array = np.ndarray
Baseline = Callable[[Float[Tensor, "b c *space"], Bool[Tensor, "b 1 *space"]], Tensor]

# A dense system of m points takes m^3 steps and m^2 numbers of memory.
MOST_POINTS = 10_000

# Covariance of `gaussian`: (1 + r^2 / (2 ALPHA LENGTH^2))^-ALPHA, r and LENGTH in cells, chosen on
# CIFAR-10 training pictures of which 5 to 40 % is known. The nugget only steadies the solve.
ALPHA, LENGTH, NUGGET = 0.25, 2.0, 1e-6

# Share of the slope in the energy of `biharmonic` where known pixels leave a slope open.
SLOPE = 1e-6


def _each(
    seen: Float[Tensor, "b c *space"],
    mask: Bool[Tensor, "b 1 *space"],
    fill: Callable[[Array, Array], Array],
) -> Float[Tensor, "b c *space"]:
    """`fill(values m c, known *space) -> k c`, the values of the hidden cells, for each picture."""
    axes = seen.dim() - 2
    if not 1 <= axes <= 3:
        raise InputError(f"a picture has {axes} axes of space; baselines take one to three")
    out = seen.clone()
    for i, known in enumerate(mask[:, 0].cpu().numpy()):
        if not known.any():
            raise InputError(f"picture {i} has no known pixel; baselines need one or more")
        if known.all():
            continue
        values = seen[i].detach().cpu().double().numpy()[:, known].T
        hidden = torch.from_numpy(fill(values, known).T.copy())
        out[i, :, ~mask[i, 0]] = hidden.to(out)
    return out


def nearest(
    seen: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b 1 *space"]
) -> Float[Tensor, "b c *space"]:
    """The value of the nearest known pixel."""
    return _each(seen, mask, _nearest)


def _nearest(values: Array, known: Array) -> Array:
    order = np.zeros(known.shape, dtype=np.int64)
    order[known] = np.arange(len(values))
    at = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return values[order[tuple(at)][~known]]


def linear(
    seen: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b 1 *space"]
) -> Float[Tensor, "b c *space"]:
    """Barycentric on the Delaunay triangulation of the known pixels, outside of it the nearest.

    Points that all lie on one line (in a volume, one plane) have no triangulation, so everything
    lies outside.
    """
    return _each(seen, mask, _linear)


def _linear(values: Array, known: Array) -> Array:
    found = _nearest(values, known)
    points, asked = np.argwhere(known).astype(float), np.argwhere(~known).astype(float)
    if known.ndim == 1:
        columns = [np.interp(asked[:, 0], points[:, 0], column) for column in values.T]
        return np.stack(columns, -1)
    if len(points) <= known.ndim:
        return found
    try:
        inside = LinearNDInterpolator(Delaunay(points), values)(asked)
    except QhullError:
        return found
    return np.where(np.isnan(inside), found, inside)


def thin_plate(
    seen: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b 1 *space"]
) -> Float[Tensor, "b c *space"]:
    """The surface of least bending through the known pixels, with an affine tail (Duchon 1977).

    Its kernel is r^3 on one axis, r^2 log r on two and r on three. Where the known pixels span less
    than the space, as one pixel or a row of them does, nothing changes across what they span.
    """
    return _each(seen, mask, _thin_plate)


def _thin_plate(values: Array, known: Array) -> Array:
    _check_dense(len(values), "thin_plate")
    points, asked = np.argwhere(known).astype(float), np.argwhere(~known).astype(float)
    middle, directions = points.mean(0), _spanned(points)
    if not len(directions):
        return np.repeat(values, len(asked), axis=0)
    kernel = {1: "cubic", 2: "thin_plate_spline", 3: "linear"}[len(directions)]
    points, asked = (points - middle) @ directions.T, (asked - middle) @ directions.T
    return RBFInterpolator(points, values, kernel=kernel, degree=1)(asked)


def _spanned(points: Array) -> Array:
    """Orthonormal directions, one a row, in which the points differ."""
    _, size, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
    return directions[: int((size > 1e-9 * max(1.0, size[0])).sum())]


def _check_dense(points: int, name: str) -> None:
    if points > MOST_POINTS:
        raise InputError(
            f"{name} solves a dense system of {points} known pixels; take biharmonic, or at most "
            f"{MOST_POINTS}"
        )


def gaussian(
    seen: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b 1 *space"]
) -> Float[Tensor, "b c *space"]:
    """Mean of a Gaussian process with unknown constant mean: ordinary kriging.

    Its covariance is the rational quadratic (Rasmussen and Williams 2006, Eq. 4.19) with exponent
    `ALPHA` and length `LENGTH`: a mixture of Gaussians of all widths, as pictures have detail at
    all scales.
    """
    return _each(seen, mask, _gaussian)


def _gaussian(values: Array, known: Array) -> Array:
    _check_dense(len(values), "gaussian")
    points, asked = np.argwhere(known).astype(float), np.argwhere(~known).astype(float)
    factor = linalg.cho_factor(_covariance(points, points) + NUGGET * np.eye(len(points)))
    one = linalg.cho_solve(factor, np.ones(len(points)))
    mean = one @ values / one.sum()
    return mean + _covariance(asked, points) @ linalg.cho_solve(factor, values - mean)


def _covariance(a: Array, b: Array) -> Array:
    return (1 + cdist(a, b, "sqeuclidean") / (2 * ALPHA * LENGTH**2)) ** -ALPHA


def biharmonic(
    seen: Float[Tensor, "b c *space"], mask: Bool[Tensor, "b 1 *space"]
) -> Float[Tensor, "b c *space"]:
    """Hidden pixels at which the discrete bilaplacian is 0, free at the borders of the picture.

    They have the least sum of squared second differences along and across all axes: the thin plate
    on the grid itself, by a sparse solve. Where known pixels leave a slope open, it is the least.
    """
    return _each(seen, mask, _biharmonic)


def _biharmonic(values: Array, known: Array) -> Array:
    energy = _bending(known.shape)
    if len(_spanned(np.argwhere(known).astype(float))) < known.ndim or min(known.shape) < 3:
        energy = energy + SLOPE * _slope(known.shape)
    hidden, at = np.flatnonzero(~known), np.flatnonzero(known)
    rows = energy[hidden]
    # Off the mean, so that a constant picture is exact whatever the condition of the system.
    mean = values.mean(0)
    solver = splu(rows[:, hidden].tocsc(), "MMD_AT_PLUS_A", options={"SymmetricMode": True})
    return mean - solver.solve(np.ascontiguousarray(rows[:, at] @ (values - mean)))


def _difference(n: int, order: int) -> sparse.csr_array:
    """Forward differences of that order along an axis of n cells, where they fit."""
    table = sparse.eye_array(n, format="csr")
    for _ in range(order):
        table = table[1:] - table[:-1]
    return table


def _along(size: tuple[int, ...], orders: tuple[int, ...]) -> sparse.csr_array:
    """A difference of the order given for each axis, of a grid in row-major order."""
    table = sparse.eye_array(1, format="csr")
    for n, order in zip(size, orders, strict=True):
        table = sparse.kron(table, _difference(n, order), format="csr")
    return table


def _bending(size: tuple[int, ...]) -> sparse.csr_array:
    """The matrix of sum_ij |d_i d_j u|^2; inside a grid its rows are the bilaplacian's."""
    total = sparse.csr_array((math.prod(size), math.prod(size)))
    for pair in combinations_with_replacement(range(len(size)), 2):
        orders = tuple(pair.count(axis) for axis in range(len(size)))
        if all(n > order for n, order in zip(size, orders, strict=True)):
            table = _along(size, orders)
            total = total + (1 if pair[0] == pair[1] else 2) * (table.T @ table)
    return total


def _slope(size: tuple[int, ...]) -> sparse.csr_array:
    """The matrix of sum_i |d_i u|^2."""
    total = sparse.csr_array((math.prod(size), math.prod(size)))
    for axis, n in enumerate(size):
        if n > 1:
            table = _along(size, tuple(int(i == axis) for i in range(len(size))))
            total = total + table.T @ table
    return total


BASELINES: dict[str, Baseline] = {
    "nearest": nearest,
    "linear": linear,
    "thin_plate": thin_plate,
    "biharmonic": biharmonic,
    "gaussian": gaussian,
}

RESIZERS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize(
    coarse: Float[Tensor, "b c h w"], size: tuple[int, int], kind: str = "bicubic"
) -> Float[Tensor, "b c h2 w2"]:
    """Pictures of another size by Pillow's filters, in float32 and without rounding to 8 bits.

    The filter widens where the picture shrinks. InputError for a kind that is not in `RESIZERS`.
    """
    if kind not in RESIZERS:
        raise InputError(f"kind is {kind}; it is one of {', '.join(RESIZERS)}")
    if min(size) < 1:
        raise InputError(f"size is {size}; height and width are 1 or more")
    planes = coarse.detach().cpu().float().flatten(0, 1).numpy()
    made = [
        np.asarray(Image.fromarray(plane).resize(size[::-1], RESIZERS[kind])) for plane in planes
    ]
    return torch.from_numpy(np.stack(made)).view(*coarse.shape[:2], *size).to(coarse)
