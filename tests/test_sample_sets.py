"""Models on sets asked at places: any number of them, observations where they lie."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pointillist.layers.observations import centres
from pointillist.models import DiTConfig
from pointillist.objective import StraightConfig
from pointillist.run import Run
from pointillist.sample import Trained, untrained
from pointillist.settings import SampleConfig
from pointillist.tasks import HintsConfig
from pointillist.types import Given, InputError, Prediction, Spec, Takes, grid_axes

SPEC = Spec(channels=2, axes=grid_axes((6, 8)))
RUN = Run(
    objective=StraightConfig(predict="x"), task=HintsConfig(),
    sample=SampleConfig(sampler="euler", steps=4),
)  # fmt: skip
GRID = DiTConfig(width=32, depth=1, heads=2, patch_size=2)


class Nearby(nn.Module):
    """Predicts the mean of what is observed, weighed by nearness, plus a share of the state."""

    takes = Takes(axes=(1, 2, 3), sets=True, observations="scattered")
    config = DiTConfig()

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.25))
        self.asked = []

    def condition(self, given, size):
        self.asked.append(given)
        if given.at is None:
            return torch.zeros(given.where.shape[0], 2, given.where.shape[1])
        weight = (-8 * torch.cdist(given.where, given.at).square()).exp() * given.valid
        return given.value @ (weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)).mT

    def forward(self, xt, t, given, context=None):
        context = self.condition(given, tuple(xt.shape[2:])) if context is None else context
        return Prediction(context + self.share * xt)


@pytest.fixture
def model():
    return Trained(RUN, SPEC, Nearby(), torch.device("cpu"))


AT = torch.tensor([[-0.3, 0.4], [0.7, -0.9], [0.1, 0.15]])
VALUE = torch.tensor([[0.5, -0.25, 0.0], [-1.0, 1.0, 0.25]])
WHERE = torch.tensor([[0.0, 0.0], [0.7, -0.9], [0.9, 0.9], [-0.3, 0.4], [0.55, 0.0]])


def test_any_places_are_answered_and_observed_ones_come_back_unchanged(model):
    post = model.reconstruct(VALUE, at=AT, where=WHERE, draws=5)
    assert post.draws.shape == (5, 2, 5)
    assert torch.equal(post.draws[:, :, 1], VALUE[:, 1].expand(5, 2))
    assert torch.equal(post.draws[:, :, 3], VALUE[:, 0].expand(5, 2))
    assert (post.std[:, [0, 2, 4]] > 0).all()
    assert torch.equal(post.hidden.flatten(), torch.tensor([True, False, True, False, True]))


def test_points_are_shown_where_they_lie_and_not_in_cells(model):
    model.reconstruct(VALUE, at=AT, draws=1)
    (given,) = model.model.asked
    assert torch.equal(given.at[0], AT) and torch.equal(given.value[0], VALUE)
    assert torch.equal(given.where[0], centres((6, 8)))


def test_a_grid_that_is_observed_is_points_and_comes_back(model):
    values = torch.randn(2, 6, 8).clamp(-1, 1)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[1, 2] = mask[4, 7] = True
    post = model.reconstruct(values, mask, draws=3)
    (given,) = model.model.asked
    assert given.at.shape == (3, 2, 2) and given.seen is None
    assert torch.equal(post.draws[:, :, mask], values[:, mask].expand(3, 2, 2))
    assert (post.draws[:, :, ~mask] != values[:, ~mask]).all()


def test_places_of_a_grid_are_answered_as_the_grid_is(model):
    """The noise differs, so it is the mean of a deterministic start that is compared."""
    sets = model.sample(3, known=Given(at=AT[None], value=VALUE[None]), where=centres((6, 8)))
    grid = model.sample(3, known=Given(at=AT[None], value=VALUE[None]))
    torch.testing.assert_close(sets.unflatten(2, (6, 8)), grid)


def test_points_that_count_for_nothing_change_nothing(model):
    at = torch.cat((AT, torch.tensor([[0.2, 0.2]])))
    value = torch.cat((VALUE, torch.full((2, 1), torch.nan)), 1)
    one = model.reconstruct(VALUE, at=AT, where=WHERE, draws=2).draws
    assert torch.equal(model.reconstruct(value, at=at, where=WHERE, draws=2).draws, one)


def test_several_fields_have_their_own_points_and_places(model):
    at, value = torch.stack((AT, -AT)), torch.stack((VALUE, VALUE.flip(1)))
    where = torch.stack((WHERE, WHERE.flip(0)))
    both = model.posterior(Given(at=at, value=value), 2, where=where)
    second = model.posterior(Given(at=at[1:], value=value[1:]), 2, where=where[1:], first=1)
    torch.testing.assert_close(both.draws[:, 1:], second.draws)


def test_numpy_in_numpy_out(model):
    post = model.reconstruct(VALUE.numpy(), at=AT.numpy(), where=WHERE.numpy(), draws=2)
    assert isinstance(post.mean, np.ndarray) and post.mean.shape == (2, 5)


def ask(model, value=VALUE, at=AT, **more):
    return model.reconstruct(value, at=at, draws=1, **{"where": WHERE, **more})


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda m: ask(m, at=torch.stack((AT[0], AT[1], AT[0]))), r"points 0 and 2 .* both lie at"),
        (lambda m: ask(m, at=AT[:1].expand(3, 2)), "both lie at"),
        (lambda m: ask(m, VALUE * torch.nan), "nothing is known"),
        (lambda m: ask(m, VALUE * torch.inf), "known values run from -1 to 1"),
        (lambda m: ask(m, at=AT * 2), "coordinates run from -1 to 1"),
        (lambda m: ask(m, at=AT[:, :1]), "1 coordinates a point"),
        (lambda m: ask(m, where=WHERE * 2), r"place 1 of where is \(1.4, -1.8\)"),
        (lambda m: ask(m, where=WHERE * torch.nan), "place 0 of where"),
        (lambda m: ask(m, where=WHERE[:, :1]), "where has shape 5x1"),
        (lambda m: ask(m, where=WHERE[:0]), "where has shape 0x2"),
        (lambda m: ask(m, where=WHERE.expand(3, 5, 2)), "where has 3 rows for 1"),
        (lambda m: ask(m, where="here"), "where is a str"),
        (lambda m: ask(m, size=(6, 8)), "size and where are both given"),
        (lambda m: ask(untrained(Run(model=GRID), SPEC)), "on grids only"),
        (lambda m: m.reconstruct(torch.zeros(2, 6, 8), where=WHERE), "seen is a grid"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_set_is_one_sentence(model, say, message):
    with pytest.raises(InputError, match=message):
        say(model)


def test_noise_of_a_length_is_the_same_function_at_any_places(model):
    """So is a draw: whoever asks for fewer places, or for the grid's, gets the same there."""
    run = dataclasses.replace(RUN, objective=StraightConfig(predict="x", noise_length=0.3))
    smooth = Trained(run, SPEC, Nearby(), torch.device("cpu"))
    every = smooth.sample(count=3, where=WHERE, seed=4)
    some = smooth.sample(count=3, where=WHERE[[4, 1]], seed=4)
    torch.testing.assert_close(some, every[..., [4, 1]], rtol=0, atol=1e-6)
    apart = model.sample(count=3, where=WHERE[[4, 1]], seed=4)  # white noise goes by number
    assert (apart - model.sample(count=3, where=WHERE, seed=4)[..., [4, 1]]).abs().max() > 0.1
