"""Noise as a function of the coordinates: its moments, and that it is one function everywhere."""

import math

import pytest
import torch

from pointillist.draws import Draw
from pointillist.objective import StraightConfig
from pointillist.objective.noise import centres
from pointillist.resolution import coarsen
from pointillist.run import from_dict
from pointillist.types import InputError

LENGTH = 0.15
SMOOTH = StraightConfig(noise_length=LENGTH)


def test_it_has_unit_variance_everywhere_and_the_stated_correlation():
    """Of 20 000 functions: a correlation is off by 0.007 once in three times."""
    where = torch.tensor([-1.0, -0.93, -0.7, 0.0, 0.013, 0.1, 0.26, 1.0])[:, None]
    found = SMOOTH.noise(Draw(0, torch.arange(20_000)), (1, 8), where=where.expand(20_000, -1, -1))[
        :, 0
    ].double()
    expected = torch.exp(-((where - where.T).double() ** 2) / (4 * LENGTH**2))
    torch.testing.assert_close(found.T @ found / 20_000, expected, rtol=0, atol=0.04)


@pytest.mark.parametrize("size", [(9,), (6, 9), (3, 4, 5)])
def test_a_grid_and_a_set_at_its_places_hold_the_same_function(size):
    objective = StraightConfig(noise_length=0.3, noise_scale=2.0)
    draw = Draw(3, torch.arange(2, 5))
    mesh = torch.meshgrid(*[centres(n) for n in size], indexing="ij")
    where = torch.stack(mesh, -1).flatten(0, -2).float().expand(3, -1, -1)
    grid = objective.noise(draw, (2, *size)).flatten(2)
    found = objective.noise(draw, (2, grid.shape[-1]), where=where)
    torch.testing.assert_close(found, grid, rtol=0, atol=2e-6)
    crop = objective.noise(draw, (2, *size), where=where)
    assert crop.shape == (3, 2, *size) and torch.equal(crop.flatten(2), found)
    some = objective.noise(draw, (2, 4), where=where[:, [3, 0, 2, 1]])
    torch.testing.assert_close(some, grid[..., [3, 0, 2, 1]], rtol=0, atol=2e-6)
    alone = objective.noise(Draw(3, torch.tensor([3])), (2, *size)).flatten(2)
    torch.testing.assert_close(alone[0], grid[1], rtol=0, atol=1e-6)
    assert (grid[0] - grid[1]).abs().max() > 0.1


def test_a_finer_grid_has_the_same_function():
    """Three times finer, every third centre is a coarse one."""
    draw = Draw(0, torch.arange(3))
    coarse, fine = (SMOOTH.noise(draw, (2, n, n)) for n in (8, 24))
    torch.testing.assert_close(fine[..., 1::3, 1::3], coarse, rtol=0, atol=2e-6)
    other = SMOOTH.noise(draw, (2, 8, 8), "step 1")
    assert (other - coarse).abs().max() > 0.1


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="objective.noise_length is 0.0001.*more than 4194304"):
        StraightConfig(noise_length=1e-4).noise(Draw(0, torch.arange(1)), (1, 4, 4))
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="objective.noise_length is"):
            StraightConfig(noise_length=wrong)
    with pytest.raises(InputError, match="leave noise_size out"):
        from_dict({}, ("objective.noise_length=0.1", "objective.noise_size=32"))
    with pytest.raises(InputError, match="only where its noise is white"):
        coarsen(SMOOTH, torch.zeros(1, 1, 4, 4), torch.tensor([0.5]), 2)
