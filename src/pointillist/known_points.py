"""What is known at points, for models that take them where they lie."""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from pointillist.known import Known, Observed, known_of, on_grid, plain_points
from pointillist.layers.observations import centres, to_points
from pointillist.measure import Mask
from pointillist.models import Network
from pointillist.objective import Interpolant
from pointillist.request import check_pixels
from pointillist.types import Given, InputError, Spec, Takes

SAME = 1e-6  # places that are no farther apart are one place


def observed(
    known: Observed,
    count: int,
    spec: Spec,
    size: tuple[int, ...],
    places: Float[Tensor, "b k s"] | None,
    takes: Takes,
) -> Known:
    """What is known of `count` fields, in the form that the network takes; see `known_of`."""
    check_pixels(spec)
    if takes.observations != "scattered" or not isinstance(known, Given):
        return known_of(known, count, spec.channels, size)
    there = size if known.seen is None else tuple(getattr(known.seen, "shape", ())[2:])
    if places is None and known.at is None and there != size:
        return known_of(known, count, spec.channels, size)  # means over coarser cells
    return known_at_points(known, count, spec.channels, size, places, spec.largest)


def check_places(places: Float[Tensor, "b k s"], network: Network, objective: Interpolant) -> None:
    """InputError where a network, or the noise it was trained with, has no answer at places."""
    if not network.takes.sets:
        raise InputError(f"where is given, but model {network.name} answers on grids only; leave "
                         f"it out, or ask a model on sets")  # fmt: skip
    if objective.noise_size is not None:
        raise InputError("where is given, but objective.noise_size makes noise by the grid's size; "
                         "ask for a size")  # fmt: skip


def known_at_points(
    known: Given,
    count: int,
    channels: int,
    size: tuple[int, ...],
    where: Float[Tensor, "b k s"] | None = None,
    largest: float = 1.0,
) -> Known:
    """What is known of `count` fields, asked on the grid of `size` or at the places `where`.

    Observations keep their own places; those that lie at a place that is asked for come back there
    unchanged. A grid that is observed is a set of points at its cell centres, and has to be the
    one that is asked for. InputError where anything does not fit, or two points are one place.
    """
    axes = len(size) if where is None else where.shape[2]
    points = plain_points(known, count, channels, axes, largest)
    if known.seen is not None:
        if where is not None:
            raise InputError(
                "seen is a grid, but places are asked for with where; give at=, value="
            )
        at, value, valid = to_points(*on_grid(known._replace(at=None, value=None, valid=None),
                                              count, channels, size))  # fmt: skip
        points = _joined(points, Given(at=at, value=value, valid=valid[:, :1]))
    if points is None:
        raise InputError("nothing is known; give seen (with mask), or at and value, or both")
    assert points.at is not None and points.value is not None and points.valid is not None
    if not points.valid.any():
        raise InputError("nothing is known: no value is finite; leave known out")
    asked = centres(size).expand(count, -1, -1) if where is None else where
    seen = torch.zeros(count, channels, asked.shape[1])
    mask = torch.zeros(count, 1, asked.shape[1], dtype=torch.bool)
    for row in range(count):
        told = points.valid[row, 0].nonzero().flatten()
        at = points.at[row, told]
        _refuse_twice(at, row)
        place = _same_place(asked[row], at)
        met = place < asked.shape[1]
        seen[row, :, place[met]] = points.value[row, :, told[met]]
        mask[row, 0, place[met]] = True
    if where is None:
        seen, mask = seen.unflatten(2, size), mask.unflatten(2, size)
    return Known(Mask(mask), seen, seen, mask, points)


def _joined(one: Given | None, other: Given) -> Given:
    if one is None:
        return other
    parts = zip((one.at, one.value, one.valid), (other.at, other.value, other.valid), strict=True)
    at, value, valid = (
        torch.cat((a, b), axis)  # type: ignore[arg-type]
        for (a, b), axis in zip(parts, (1, 2, 2), strict=True)
    )
    return Given(at=at, value=value, valid=valid)


def _same_place(asked: Float[Tensor, "k s"], at: Float[Tensor, "m s"]) -> Int[Tensor, " m"]:
    """Which asked place each point lies at; k where it lies at none."""
    _, place = cKDTree(asked.double().numpy()).query(at.double().numpy(), distance_upper_bound=SAME)
    return torch.from_numpy(np.asarray(place, dtype=np.int64))


def _refuse_twice(at: Float[Tensor, "m s"], row: int) -> None:
    """InputError where two points are one place: which of their values holds, nobody says."""
    if at.shape[0] < 2:
        return
    pairs = cKDTree(at.double().numpy()).query_pairs(SAME, output_type="ndarray")
    if len(pairs):
        first, second = sorted(pairs[0].tolist())
        told = ", ".join(f"{x:g}" for x in at[first].tolist())
        raise InputError(
            f"points {first} and {second} of row {row} both lie at ({told}); give one value for a "
            f"place, such as their mean"
        )
