"""States seen smaller: still states of the same path, at the time that belongs to them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw
from pointillist.layers.offset import moved
from pointillist.objective import GVPConfig, StraightConfig, VEConfig, VPConfig
from pointillist.resolution import base_scale, box_means, coarsen
from pointillist.types import InputError

PATHS = [StraightConfig, GVPConfig, VPConfig, VEConfig]
SIZES = [(12,), (8, 12), (4, 8, 8)]
# VE's noise ends before a quarter of it could still be one of the path.
TIMES = [0.0, 1e-4, 0.3, 0.8, 0.999]


def drawn(size, b=2):
    draw = Draw(0, torch.arange(b))
    return (draw.normal(name, (3, *size)).double() for name in ("x", "eps"))


def share_of_noise(path, size, n):
    """How much of the noise's own strength means over n cells leave, at the smaller size."""
    small = tuple(edge // n for edge in size)
    return path.noise_strength(size) / path.noise_strength(small) / math.sqrt(n ** len(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise_size", [None, 16], ids=["even", "by size"])
@pytest.mark.parametrize("path", PATHS)
def test_a_state_seen_smaller_is_one_of_the_same_path(path, noise_size, size):
    objective = path(noise_size=noise_size)
    x, eps = drawn(size)
    for n in (2, 4):
        q = share_of_noise(objective, size, n)
        if path in (VPConfig, VEConfig) and q > 1:
            continue  # before the first time of these paths
        for time in TIMES:
            t = torch.full((2,), time if path is not VEConfig else 0.7 * time).double()
            found, later = coarsen(objective, objective.mix(x, eps, t), t, n)
            expected = objective.mix(box_means(x, n), box_means(eps, n) / q, later)
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
            assert ((later >= 0) & (later <= 1)).all()
            assert q > 1 or (later >= t - 1e-9).all()


@pytest.mark.parametrize("size", SIZES)
def test_on_the_straight_path_time_and_state_are_divided_by_the_same_number(size):
    x, eps = drawn(size)
    t = torch.tensor([0.2, 0.9]).double()
    xt = StraightConfig().mix(x, eps, t)
    found, later = coarsen(StraightConfig(), xt, t, 2)
    k = t + (1 - t) / math.sqrt(2 ** len(size))
    torch.testing.assert_close(later, t / k)
    torch.testing.assert_close(found, box_means(xt, 2) / k.view(-1, *[1] * (x.dim() - 1)))


def test_pure_noise_stays_white_and_of_unit_strength():
    eps = Draw(0, torch.arange(64)).normal("eps", (3, 16, 16))
    found, later = coarsen(StraightConfig(), eps, torch.zeros(64), 2)
    assert not later.any() and float(found.std()) == pytest.approx(1, abs=0.02)
    beside = (found[..., 1:] * found[..., :-1]).mean()
    assert abs(float(beside)) < 0.02


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_the_data_end_stays_the_picture(path, kind):
    x, _ = drawn((8, 8))
    for t in (torch.ones(2), torch.tensor(1.0)):  # a time a sample, and one for all
        found, later = coarsen(path(), x.to(kind), t.to(kind), 2)
        torch.testing.assert_close(found, box_means(x.to(kind), 2))
        assert found.dtype == later.dtype == kind and later.shape == t.shape and (later == 1).all()


def test_where_noise_grows_with_the_size_a_picture_is_as_noisy_seen_smaller():
    x, eps = drawn((8, 8))
    t = torch.tensor([0.2, 0.9]).double()
    objective = StraightConfig(noise_size=8)
    torch.testing.assert_close(coarsen(objective, objective.mix(x, eps, t), t, 2)[1], t)


def test_what_does_not_divide_has_no_means():
    with pytest.raises(InputError, match="size 6x9 is no multiple of 2"):
        box_means(torch.zeros(1, 1, 6, 9), 2)


# The scale at which a size is reached.


@settings(deadline=None)
@given(
    grid=st.lists(st.integers(1, 12), min_size=1, max_size=3), p=st.integers(1, 5),
    trained=st.integers(1, 9),
)  # fmt: skip
def test_the_base_scale_fits_and_no_other_is_nearer(grid, p, trained):
    size, before = tuple(n * p for n in grid), (trained * p,) * len(grid)
    r = base_scale(size, before, p)

    def off(scale):
        return abs(math.log(math.prod(n / scale for n in size) / math.prod(before)))

    fits = [s for s in range(1, max(grid) + 1) if not any(n % s for n in grid)]
    assert r in fits and off(r) <= min(map(off, fits)) + 1e-8


def test_whole_multiples_of_the_trained_size_are_seen_at_it():
    for r in range(1, 7):
        assert base_scale((32 * r, 48 * r), (32, 48), 8) == r
    assert base_scale((36, 52), (32, 48), 4) == 1  # a little larger: nearer as it is
    assert base_scale((16, 16), (32, 32), 8) == 1


def test_a_size_that_fits_no_patches_is_refused_with_one_that_does():
    with pytest.raises(InputError, match="size 65x64 is no multiple of the patch size 8; 64x64"):
        base_scale((65, 64), (32, 32), 8)


def test_a_picture_that_is_moved_by_nothing_stays_and_a_slope_is_met_where_it_is_taken():
    slope = torch.linspace(-1, 1, 12)[:, None] + torch.linspace(0, 3, 8) ** 2
    x = slope.double()[None, None]
    assert torch.equal(moved(x, torch.zeros(2, 4)), x)
    offsets = torch.tensor([[0.1, -0.4, 0.3, 0.49], [-0.5, 0.2, 0.0, -0.1]])
    rows = (torch.arange(12) + offsets[0].repeat(3)).double() * 2 / 11 - 1
    columns = ((torch.arange(8) + offsets[1].repeat(2)).double() * 3 / 7) ** 2
    found = moved(x, offsets)[0, 0]
    # A cubic through four cells is exact for squares; at the rim a cell stands in for one beyond.
    expected = rows[:, None] + columns
    torch.testing.assert_close(found[2:-2, 2:-2], expected[2:-2, 2:-2], rtol=1e-6, atol=1e-6)


def test_moving_works_on_one_to_three_axes_and_in_every_patch_alike():
    for axes in (1, 2, 3):
        x = torch.randn(2, 3, *[8] * axes, generator=torch.manual_seed(0))
        offsets = torch.rand(axes, 4, generator=torch.manual_seed(1)) - 0.5
        again = torch.cat((x, x), -1)
        inner = (..., slice(9, -2)) if axes == 1 else (..., slice(2, -2), slice(9, -2))
        there = moved(again, offsets)[inner]
        here = moved(torch.cat((again, x), -1), offsets)[(*inner[:-1], slice(9, 14))]
        torch.testing.assert_close(there[..., :5], here)
