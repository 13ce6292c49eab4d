"""The door converts what a model is given into the form it takes, on one, two and three axes."""

import pytest
import torch
from torch import nn

from pointillist.draws import Draw
from pointillist.layers.observations import centres, to_grid, to_points
from pointillist.models import DiTConfig, Network
from pointillist.types import Given, InputError, Prediction, Takes

from .test_models import SIZES, spec_of


class Config:
    kind = "toy"


class GridModel(nn.Module):
    """Answers what it sees on the grid."""

    takes = Takes(axes=(1, 2, 3), observations="gridded")
    config = Config()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def condition(self, given, size):
        return given.seen * given.mask

    def forward(self, xt, t, given, context=None):
        context = self.condition(given, tuple(xt.shape[2:])) if context is None else context
        return Prediction(xt * 0 + context * self.weight)


class SetModel(GridModel):
    """Answers the sum of its places' coordinates and of the valid observed values."""

    takes = Takes(axes=(1, 2, 3), sets=True, observations="scattered")

    def condition(self, given, size):
        return given.where.sum(-1)[:, None] + (given.value * given.valid).sum(-1)[..., None]

    def forward(self, xt, t, given, context=None):
        context = self.condition(given, tuple(xt.shape[2:])) if context is None else context
        return Prediction(xt * 0 + context * self.weight)


def observed(size, b=2, c=2):
    draw = Draw(3, torch.arange(b))
    seen = draw.normal("seen", (c, *size))
    mask = (draw.uniform("mask", (1, *size)) < 0.4).expand(b, c, *size)
    return seen * mask, mask


@pytest.mark.parametrize("size", SIZES)
def test_points_and_grid_hold_the_same_observations(size):
    seen, mask = observed(size)
    at, value, valid = to_points(seen, mask)
    assert at.shape[-1] == len(size) and valid.sum() == mask.sum()
    back, held = to_grid(at, value, valid, size)
    assert torch.equal(back, seen) and torch.equal(held, mask)


@pytest.mark.parametrize("size", SIZES)
def test_a_grid_model_sees_scattered_observations_on_its_grid(size):
    seen, mask = observed(size)
    at, value, valid = to_points(seen, mask)
    t = torch.zeros(2)
    network = Network(GridModel())
    scattered = network(seen, t, Given(at=at, value=value, valid=valid)).value
    assert torch.equal(scattered, network(seen, t, Given(seen=seen, mask=mask)).value)


@pytest.mark.parametrize("size", SIZES)
def test_a_set_model_answers_a_grid_at_its_cell_centres(size):
    seen, mask = observed(size)
    t = torch.zeros(2)
    value = Network(SetModel())(seen, t, Given(seen=seen, mask=mask)).value
    expected = centres(size).sum(-1).view(size) + seen.flatten(2).sum(-1)[:, :, None].view(
        2, 2, *[1] * len(size)
    )
    torch.testing.assert_close(value, expected)
    scattered = Given(**dict(zip(("at", "value", "valid"), to_points(seen, mask), strict=True)))
    torch.testing.assert_close(Network(SetModel())(seen, t, scattered).value, expected)


def test_both_forms_at_once_reach_either_model():
    seen, mask = observed((8, 8))
    at, value = torch.tensor([[[0.0, 0.0]]] * 2), torch.ones(2, 2, 1)
    given = Given(seen=seen, mask=mask, at=at, value=value, valid=torch.ones(2, 1, 1).bool())
    t = torch.zeros(2)
    on_grid = Network(GridModel())(seen, t, given).value
    cell = (..., 4, 4)
    assert torch.equal(on_grid[cell], torch.where(mask[cell], seen[cell], 1.0))
    as_set = Network(SetModel())(seen, t, given).value
    alone = Network(SetModel())(seen, t, given._replace(at=None, value=None, valid=None)).value
    torch.testing.assert_close(as_set, alone + 1)


def test_the_door_refuses_what_a_model_does_not_take():
    network = Network(DiTConfig(width=32, depth=1, heads=2).build(spec_of((8, 8))))
    x, t = torch.zeros(1, 2, 8, 8), torch.zeros(1)
    label = torch.zeros(1, dtype=torch.long)
    with pytest.raises(InputError, match="dit of this run takes no hints"):
        network(x, t, Given(label=label, seen=x, mask=x.bool()))
    with pytest.raises(InputError, match="grids only"):
        network(x[:, :, 0], t, Given(label=label, where=torch.zeros(1, 8, 2)))
    with pytest.raises(InputError, match="not 4"):
        network(torch.zeros(1, 2, 4, 4, 4, 4), t, Given(label=label))
