"""Local attention: what is near counts, what is far does not at all, and nothing jumps."""

import math

import pytest
import torch
from torch import nn

from pointillist.draws import Draw
from pointillist.layers import local_attention
from pointillist.layers.local_attention import LocalAttention, pairs_of, turn_of
from pointillist.layers.neighbours import neighbours
from pointillist.layers.observations import centres
from pointillist.models import HybridConfig, LocalConfig, Network
from pointillist.models.tiles import in_tiles
from pointillist.types import Given, InputError

from .contract.test_models import spec_of, toy


def case(b=3, k=20, m=9, axes=2):
    draw = Draw(4, torch.arange(b))
    where, at = (draw.uniform(name, (n, axes)) * 2 - 1 for name, n in (("where", k), ("at", m)))
    count = torch.tensor([m, 4, 0])[:b]
    valid = (torch.arange(m) < count[:, None])[:, None]
    label = torch.tensor([0, -1, 2])[:b]
    given = Given(label=label, where=where, at=at, value=draw.normal("v", (2, m)), valid=valid)
    return draw.normal("x", (2, k)), draw.uniform("t"), given


def model_of(axes=2, **more):
    return toy(LocalConfig, (8,) * axes, **({"radius": 0.5, "depth": 2, "width": 32} | more))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("mixing", [0, 4])
def test_a_batch_with_different_counts_equals_its_samples_one_by_one(mixing, axes):
    network = Network(model_of(axes, mixing=mixing))
    x, t, given = case(axes=axes)
    whole = network(x, t, given).value
    for i, m in enumerate((9, 4, 0)):
        one = Given(label=given.label[i : i + 1], where=given.where[i : i + 1])
        if m:
            at, value = given.at[i : i + 1, :m], given.value[i : i + 1, :, :m]
            one = one._replace(at=at, value=value)
        alone = network(x[i : i + 1], t[i : i + 1], one).value
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


def test_neither_the_order_of_points_nor_that_of_places_matters():
    network = Network(model_of())
    x, t, given = case()
    order, places = torch.randperm(9), torch.randperm(20)
    turned = given._replace(
        at=given.at[:, order], value=given.value[:, :, order], valid=given.valid[:, :, order],
        where=given.where[:, places],
    )  # fmt: skip
    torch.testing.assert_close(
        network(x[:, :, places], t, turned).value, network(x, t, given).value[:, :, places],
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.fixture
def gathered(monkeypatch):
    """Pairs are gathered, as on a GPU, and not put into blocks."""
    monkeypatch.setattr(local_attention, "FLAT", 0.0)


@pytest.mark.parametrize("way", ["blocks", "gathered"])
@pytest.mark.parametrize("metric", [(), (2.0, 1.0)])
def test_what_is_farther_than_layers_times_radius_changes_nothing_at_all(way, metric, request):
    if way == "gathered":
        request.getfixturevalue(way)
    model = model_of(radius=0.3, metric=metric)
    assert model.takes.reach == (0.3 if metric else 0.6, 0.6)
    line = torch.linspace(-1, 1, 41)[:, None]
    where = torch.cat((line, torch.zeros_like(line)), 1)[None]
    x, t = Draw(1, torch.arange(1)).normal("x", (2, 41)), torch.tensor([0.4])
    at = where[:, [0, 12, 30, 40]] + 0.013
    given = Given(where=where, at=at, value=torch.ones(1, 2, 4))
    before = model(x, t, given).value
    far = torch.where(where[..., 0] > 0.5, 5.0, 0.0)[:, None]
    value = given.value + torch.where(at[..., 0] > 0.5, 5.0, 0.0)[:, None]
    fewer = given._replace(at=at[:, :3], value=value[:, :, :3])
    # A product of fewer rows may round otherwise.
    for state, told, rounding in (
        (x + far, given, 0), (x, given._replace(value=value), 0), (x, fewer, 1e-6),
    ):  # fmt: skip
        moved = (model(state, t, told).value - before).abs().amax((0, 1))
        reach = model.takes.reach[0]
        assert (moved[line[:, 0] <= 0.5 - reach] <= rounding).all()
        assert moved.max() > 1e-4


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 64])
def test_blocks_and_gathered_pairs_are_the_same_with_gradients(size, axes, monkeypatch):
    monkeypatch.setattr(local_attention, "BLOCK", size)
    x, t, given = case(axes=axes)
    found = []
    for flat in (1e5, 0.0):
        monkeypatch.setattr(local_attention, "FLAT", flat)
        model = model_of(axes, neighbours=4, mixing=5)
        context = model.condition(given, (20,))
        assert (context.pairs.blocks is None) == (flat == 0)
        answer = model(x, t, given, context).value
        model.zero_grad()
        answer.square().sum().backward()
        found.append([answer, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)
    assert all((g.abs().max() > 0) for g in found[0][1:])


def test_places_that_lie_nearly_together_are_not_put_into_blocks():
    """|a|^2 - 2 a b + |b|^2 would be nothing but rounding."""
    where = torch.cat((torch.linspace(-1, 1, 10), 0.3 + 1e-6 * torch.arange(10)))[None, :, None]
    model = model_of(1, neighbours=4, mixing=4)
    given = Given(where=where, at=where[:, :6] + 0.01, value=torch.ones(1, 2, 6))
    context = model.condition(given, (20,))
    assert context.pairs.blocks is None
    answer = model(torch.ones(1, 2, 20), torch.tensor([0.5]), given, context).value
    assert bool(answer.isfinite().all())


def test_pieces_of_the_places_are_the_whole(monkeypatch, gathered):
    model, (x, t, given) = model_of(), case()
    whole = model(x, t, given).value
    monkeypatch.setattr(local_attention, "HELD", 3 * 8 * 32 * 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, given).value, whole, rtol=1e-5, atol=1e-6)


def layer_at(line, points, count=6, radius=0.4):
    """A local attention from a line of places to points of random content."""
    torch.manual_seed(0)
    layer = LocalAttention(32, 4)
    nn.init.normal_(layer.null_key)
    nn.init.normal_(layer.null_value)
    tokens = torch.randn(1, points.shape[1], 32)
    near = neighbours(line, points, torch.ones_like(points[..., 0], dtype=torch.bool)[:, None],
                      count, radius)  # fmt: skip
    keys = layer.keys(tokens, turn_of(points, radius, 8, 1.0))
    pairs, turn = pairs_of(line, [(points, near)]), turn_of(line, radius, 8, 1.0)
    return layer, keys, pairs, turn


def test_it_is_continuous_along_a_line():
    """With 10 000 places and with twice as many, the largest jump halves."""
    points = torch.rand(1, 60, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    jumps = []
    for n in (10_001, 20_001):
        s = torch.linspace(-1, 1, n)
        line = torch.stack((s, 0.3 * s), -1)[None]
        layer, keys, pairs, turn = layer_at(line, points)
        with torch.no_grad():
            same = torch.ones(1, n, 32)
            jumps.append(float(layer(same, keys, pairs, turn).diff(dim=1).norm(dim=-1).max()))
    assert jumps[1] <= 0.6 * jumps[0], jumps


def test_weights_fall_with_distance_and_sum_to_one():
    points = torch.rand(1, 400, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    line = centres((20, 20))[None]
    layer, keys, pairs, turn = layer_at(line, points, count=32)
    weight, none = layer.weights(torch.randn(1, 400, 32), keys, pairs, turn)
    torch.testing.assert_close(weight.sum(-1) + none[..., 0], torch.ones(1, 4, 400))
    bins = [weight[pairs.far[:, None].expand_as(weight).sub(u).abs() < 0.1].mean()
            for u in (0.1, 0.3, 0.5, 0.7, 0.9)]  # fmt: skip
    assert all(a > b for a, b in zip(bins, bins[1:], strict=False)), bins


def test_keys_and_values_are_those_of_relative_places():
    points = torch.rand(1, 30, 2, generator=torch.Generator().manual_seed(3)) - 0.5
    line = torch.rand(1, 12, 2, generator=torch.Generator().manual_seed(4)) - 0.5
    h, by = torch.randn(1, 12, 32), torch.tensor([0.25, -0.5])
    with torch.no_grad():
        here, there = (
            layer(h, keys, pairs, turn)
            for layer, keys, pairs, turn in (
                layer_at(line, points),
                layer_at(line + by, points + by),
            )
        )
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)
    model = model_of(places=0)
    x, t, given = case()
    moved = given._replace(where=given.where + by, at=given.at + by)
    torch.testing.assert_close(
        model(x, t, moved).value, model(x, t, given).value, rtol=1e-3, atol=1e-4
    )


def test_tiles_are_the_whole():
    model = model_of(radius=0.2)
    network = Network(model)
    draw = Draw(3, torch.arange(2))
    x, t = draw.normal("x", (2, 16, 16)), torch.tensor([0.3, 0.8])
    at, value = draw.uniform("at", (60, 2)) * 2 - 1, draw.normal("v", (2, 60))
    given = Given(at=at, value=value)
    with torch.no_grad():
        whole, parts = (n(x, t, given).value for n in (network, in_tiles(network, 0.5)))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["blocks", "gathered"])
@pytest.mark.parametrize("config", [LocalConfig, HybridConfig])
def test_a_context_made_of_nothing_serves_a_batch(config, way, request):
    if way == "gathered":
        request.getfixturevalue(way)
    network = Network(config(width=32, depth=2, heads=2).build(spec_of((16, 16))))
    for p in network.model.parameters():
        nn.init.normal_(p, std=0.1)
    draw = Draw(3, torch.arange(3))
    x, t = draw.normal("x", (2, 16, 16)), draw.uniform("t")
    with torch.no_grad():
        shared = network(x, t, Given(), network.condition(Given(), (16, 16))).value
        torch.testing.assert_close(shared, network(x, t, Given()).value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_to_look_at_and_places_that_coincide_are_answered():
    x, t, given = case()
    alone = model_of(mixing=0)(x, t, Given(where=given.where)).value
    assert bool(alone.isfinite().all()) and alone.std() > 0
    where = torch.full((3, 20, 2), 0.25)
    for observed in (Given(where=where), Given(where=where, at=where[:, :9], value=given.value)):
        answer = model_of(neighbours=4, mixing=12)(x, t, observed).value
        assert bool(answer.isfinite().all())


def test_bad_configurations_are_refused():
    for fields, message in (
        ({"radius": math.nan}, "model.radius is nan"),
        ({"metric": (1.0, math.inf)}, "model.metric is"),
        ({"radius": 0.0}, "model.radius is 0.0"),
        ({"neighbours": 0}, "model.neighbours is 0"),
        ({"mixing": -1}, "model.mixing is -1"),
        ({"metric": (1.0, 0.0)}, "model.metric is"),
        ({"heads": 3}, "heads"),
    ):
        with pytest.raises(InputError, match=message):
            LocalConfig(**fields)
    with pytest.raises(InputError, match="model.metric has 3 numbers, the data 2 axes"):
        LocalConfig(metric=(1.0, 1.0, 1.0)).build(spec_of((8, 8)))
