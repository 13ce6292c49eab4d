"""A local model in tiles: the answer of the whole field, from parts of it."""

import pytest
import torch
from torch import nn

from pointillist.draws import Draw
from pointillist.models import DiTConfig, Network, in_tiles
from pointillist.models.tiles import TiledNetwork
from pointillist.sample import Trained
from pointillist.types import Given, InputError, Prediction, Spec, Takes, grid_axes

from .test_sample_sets import RUN

REACH = (0.2, 0.35)


class Local(nn.Module):
    """Sums of the neighbours' states and of observed values, nothing beyond REACH."""

    takes = Takes(axes=(2,), sets=True, observations="scattered", reach=REACH)
    config = DiTConfig()

    def __init__(self, size=(12, 16)):
        super().__init__()
        self.spec = Spec(channels=2, axes=grid_axes(size))
        self.share = nn.Parameter(torch.tensor(0.3))
        self.most = 0

    def kernel(self, a, b):
        apart = (a[:, :, None] - b[:, None]) / torch.tensor(REACH)
        return (1 - apart.square().sum(-1)).clamp(min=0).square()

    def condition(self, given, size):
        self.most = max(self.most, given.where.shape[1])
        own = self.kernel(given.where, given.where)
        seen = torch.zeros(own.shape[0], 2, own.shape[1])
        if given.at is not None:
            seen = given.value @ (self.kernel(given.where, given.at) * given.valid).mT
        return own, seen

    def forward(self, xt, t, given, context=None):
        own, seen = self.condition(given, tuple(xt.shape[2:])) if context is None else context
        return Prediction(seen - self.share * torch.tanh(xt @ own))


def case(b=3, k=150, m=40):
    draw = Draw(5, torch.arange(b))
    where, at = (draw.uniform(name, (n, 2)) * 2 - 1 for name, n in (("where", k), ("at", m)))
    valid = draw.uniform("valid", (1, m)) < torch.tensor([1.0, 0.5, 0.0])[:b, None, None]
    given = Given(where=where, at=at, value=draw.normal("value", (2, m)), valid=valid)
    return draw.normal("x", (2, k)), draw.uniform("t"), given


@pytest.mark.parametrize("edge", [0.3, 0.77, 1.0, 2.0, 5.0])
def test_tiles_of_any_edge_give_the_answer_of_the_whole(edge):
    network = Network(Local())
    x, t, given = case()
    whole = network(x, t, given).value
    tiled = TiledNetwork(network, edge)
    torch.testing.assert_close(tiled(x, t, given).value, whole, rtol=0, atol=1e-5)
    context = tiled.condition(given, (x.shape[2],))
    assert torch.equal(tiled(x, t, given, context).value, tiled(x, t, given).value)


def test_places_on_the_rim_belong_to_a_tile():
    network = Network(Local())
    corners = torch.cartesian_prod(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0, 1.0]))
    x, t = torch.randn(1, 2, 6), torch.tensor([0.5])
    given = Given(where=corners[None])
    tiled = TiledNetwork(network, 0.5)(x, t, given).value
    torch.testing.assert_close(tiled, network(x, t, given).value)


def test_a_tile_is_asked_with_its_neighbourhood_alone():
    model = Local()
    x, t, given = case(k=4000)
    TiledNetwork(Network(model), 0.25)(x, t, given)
    assert model.most < 4000 * (0.25 + 0.4) * (0.25 + 0.7) / 4 * 1.5


def test_a_walk_in_tiles_is_the_walk_of_the_whole():
    trained = Trained(RUN, Local().spec, Local(), torch.device("cpu"))
    known = Given(at=torch.tensor([[[0.1, 0.2], [-0.6, 0.9]]]), value=torch.rand(1, 2, 2))
    whole = trained.posterior(known, 2).draws
    tiled = trained.posterior(known, 2, tile=0.5).draws
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert whole.shape == (2, 1, 2, 12, 16)


class Wide(Local):
    takes = Takes(axes=(2,), sets=True, observations="scattered")


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda: in_tiles(Network(Local()), 0.0), "tile is 0"),
        (lambda: in_tiles(Network(Local()), torch.nan), "tile is nan"),
        (lambda: in_tiles(Network(Wide()), 0.5), "depends on all places"),
        (lambda: in_tiles(Network(Local()), 0.5)(*case(), taps=(1,)), "leave tile out"),
    ],
)
def test_what_tiles_cannot_do_is_one_sentence(say, message):
    with pytest.raises(InputError, match=message):
        say()
