"""Classical interpolation against answers known beforehand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist import baselines
from pointillist.baselines import BASELINES, RESIZERS, resize
from pointillist.types import InputError

EVERY = pytest.mark.parametrize("name", BASELINES)
SIZES = [(20,), (7, 9), (5, 4, 6)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some(*size: int, share: float = 0.3, seed: int = 1) -> torch.Tensor:
    """One mask in which at least one cell is known."""
    drawn = torch.rand(math.prod(size), generator=torch.Generator().manual_seed(seed))
    mask = drawn < share
    mask[drawn.argmin()] = True
    return mask.view(1, 1, *size)


def places(*size: int) -> list[torch.Tensor]:
    return list(torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij"))


def plane(*size: int) -> torch.Tensor:
    return sum((i + 1.5) * p for i, p in enumerate(places(*size)))[None, None] / 10 - 1


@EVERY
@settings(deadline=None, max_examples=30)
@given(size=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
       share=st.floats(0, 1), seed=st.integers(0, 1000))  # fmt: skip
def test_known_pixels_come_back_and_all_others_are_finite(name, size, share, seed):
    seen, mask = noise(1, 2, *size, seed=seed), some(*size, share=share, seed=seed)
    full = BASELINES[name](seen, mask)
    assert full.dtype == seen.dtype and full.isfinite().all()
    assert torch.equal(torch.where(mask, full, 0), torch.where(mask, seen, 0))


@EVERY
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_a_constant_picture_stays_what_it_is(name, size, share):
    full = BASELINES[name](torch.full((1, 3, *size), 0.7), some(*size, share=share))
    torch.testing.assert_close(full, torch.full_like(full, 0.7))


@EVERY
def test_hidden_values_are_not_read(name):
    seen, mask = noise(1, 3, 7, 9), some(7, 9)
    other = torch.where(mask, seen, torch.nan)
    assert torch.equal(BASELINES[name](seen, mask), BASELINES[name](other, mask))


@EVERY
def test_a_permuted_batch_gives_permuted_pictures(name):
    seen = noise(3, 2, 7, 9)
    mask = torch.cat([some(7, 9, share=q) for q in (0.0, 0.1, 0.6)])
    order = torch.tensor([2, 0, 1])
    full = BASELINES[name](seen, mask)
    assert torch.equal(BASELINES[name](seen[order], mask[order]), full[order])


@EVERY
def test_channels_are_filled_alike_and_linearly(name):
    seen, mask = noise(1, 3, 7, 9).double(), some(7, 9)
    full = BASELINES[name](seen, mask)
    mixed = BASELINES[name](seen[:, :1] - 2 * seen[:, 1:2] + 0.5, mask)
    torch.testing.assert_close(mixed, full[:, :1] - 2 * full[:, 1:2] + 0.5)


@EVERY
def test_a_picture_without_known_pixels_is_refused_by_number(name):
    mask = torch.cat((some(4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)))
    with pytest.raises(InputError, match="picture 1 has no known pixel"):
        BASELINES[name](noise(2, 1, 4, 4), mask)
    with pytest.raises(InputError, match="4 axes of space; baselines take one to three"):
        BASELINES[name](noise(1, 1, 2, 2, 2, 2), torch.ones(1, 1, 2, 2, 2, 2, dtype=torch.bool))


@pytest.mark.parametrize("name", ["linear", "thin_plate", "biharmonic"])
@pytest.mark.parametrize("size", SIZES)
def test_a_plane_is_reproduced(name, size):
    x, mask = plane(*size), some(*size, share=0.2)
    # All corners are known, so that nothing lies outside of the hull.
    mask[(0, 0, *np.ix_(*([0, n - 1] for n in size)))] = True
    torch.testing.assert_close(BASELINES[name](x, mask), x)


@pytest.mark.parametrize("name", ["thin_plate", "biharmonic"])
@pytest.mark.parametrize("size", SIZES)
def test_a_plane_is_continued_beyond_known_pixels(name, size):
    x, mask = plane(*size), torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[(0, 0, *(slice(1, 3) for _ in size))] = True
    torch.testing.assert_close(BASELINES[name](x, mask), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["thin_plate", "biharmonic"])
@pytest.mark.parametrize("known", [[(1, 2)], [(1, 2), (4, 2)], [(1, 2), (2, 2), (5, 2)]])
def test_a_row_of_pixels_leaves_nothing_to_change_across_it(name, known):
    x, mask = plane(6, 8), torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    for row, column in known:
        mask[0, 0, row, column] = True
    wanted = x[..., 2:3].expand_as(x) if len(known) > 1 else x[0, 0, 1, 2].expand_as(x)
    torch.testing.assert_close(BASELINES[name](x, mask), wanted, atol=1e-4, rtol=0)


def test_nearest_takes_the_value_of_the_closest_known_pixel():
    seen, mask = noise(1, 2, 7, 9), some(7, 9, share=0.1)
    full = BASELINES["nearest"](seen, mask)
    known = mask[0, 0].nonzero()
    for row in range(7):
        for column in range(9):
            far = (known - torch.tensor([row, column])).square().sum(1)
            closest = known[far == far.min()]
            values = [seen[0, :, i, j] for i, j in closest.tolist()]
            assert any(torch.equal(full[0, :, row, column], value) for value in values)


def test_linear_is_the_nearest_outside_of_the_hull():
    seen = torch.zeros(1, 1, 5, 5)
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    for value, (row, column) in enumerate([(1, 1), (1, 3), (3, 1)], 1):
        mask[0, 0, row, column], seen[0, 0, row, column] = True, value
    full = BASELINES["linear"](seen, mask)[0, 0]
    assert full[1, 2] == 1.5 and full[2, 2] == 2.5 and full[2, 1] == 2
    assert full[0, 4] == 2 and full[4, 0] == 3 and full[0, 0] == 1


def test_thin_plate_has_less_bending_than_any_other_surface_through_its_pixels():
    # On one axis that surface is the natural cubic spline.
    from scipy.interpolate import CubicSpline

    seen, mask = noise(1, 1, 20).double(), some(20)
    at = mask[0, 0].nonzero()[:, 0].numpy()
    inside = np.arange(at.min(), at.max() + 1)
    wanted = CubicSpline(at, seen[0, 0, at].numpy(), bc_type="natural")(inside)
    found = BASELINES["thin_plate"](seen, mask)[0, 0, inside]
    torch.testing.assert_close(found, torch.from_numpy(wanted))


@pytest.mark.parametrize("terms", [(3, 0), (2, 1), (1, 2), (3, 1), (1, 1)])
def test_biharmonic_restores_a_biharmonic_polynomial_inside_a_known_rim(terms):
    rows, columns = places(10, 11)
    x = (((rows - 4) / 5) ** terms[0] * ((columns - 5) / 5) ** terms[1])[None, None]
    mask = torch.ones(1, 1, 10, 11, dtype=torch.bool)
    mask[..., 2:-2, 2:-2] = False
    torch.testing.assert_close(BASELINES["biharmonic"](x, mask), x)
    square = (rows**2 * columns**2)[None, None] / 100  # its bilaplacian is 8/100, not 0
    assert (BASELINES["biharmonic"](square, mask) - square).abs().max() > 0.1


def test_gaussian_is_the_mean_of_its_process():
    seen, mask = noise(1, 1, 4, 5).double(), some(4, 5)
    cells = torch.stack(places(4, 5), -1).view(-1, 2)
    distance = torch.cdist(cells, cells)
    covariance = (1 + distance**2 / (2 * 0.25 * 2.0**2)) ** -0.25
    known = mask.flatten()
    # A constant of nearly unknown height is one more, very large, covariance.
    wide = covariance + 1e4
    weights = torch.linalg.solve(
        wide[known][:, known] + 1e-6 * torch.eye(int(known.sum())), seen.flatten()[known]
    )
    wanted = torch.where(known, seen.flatten(), wide[:, known] @ weights).view_as(seen)
    torch.testing.assert_close(BASELINES["gaussian"](seen, mask), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["thin_plate", "gaussian"])
def test_a_dense_system_that_is_too_large_is_refused(name, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_POINTS", 5)
    mask = torch.arange(12).view(1, 1, 3, 4) < 6
    with pytest.raises(InputError, match=f"{name} solves a dense system of 6 .* at most 5"):
        BASELINES[name](noise(1, 1, 3, 4), mask)


@pytest.mark.parametrize("kind", RESIZERS)
def test_resizing_keeps_constants_and_the_same_size(kind):
    x = noise(2, 3, 4, 6)
    torch.testing.assert_close(resize(x, (4, 6), kind), x)
    full = torch.full((1, 2, 4, 6), 1.7)  # neither clipped nor rounded
    torch.testing.assert_close(resize(full, (9, 5), kind), torch.full((1, 2, 9, 5), 1.7))


def test_resizing_by_boxes_takes_means_and_by_bicubic_keeps_a_slope():
    x = noise(1, 2, 8, 6)
    means = x.unflatten(3, (3, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(resize(x, (4, 3), "box"), means)
    slope = torch.arange(12.0).expand(1, 1, 12, 12)
    wanted = (torch.arange(24.0) + 0.5) / 2 - 0.5
    middle = resize(slope, (24, 24), "bicubic")[0, 0, 12, 6:-6]
    torch.testing.assert_close(middle, wanted[6:-6])


def test_a_resizer_or_size_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="kind is cubic; it is one of nearest, box"):
        resize(noise(1, 1, 2, 2), (4, 4), "cubic")
    with pytest.raises(InputError, match="height and width are 1 or more"):
        resize(noise(1, 1, 2, 2), (0, 4))
