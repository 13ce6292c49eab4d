"""Local attention and scans in turn: near in detail, far at all."""

import pytest
import torch

from pointillist.draws import Draw
from pointillist.models import HybridConfig, Network
from pointillist.models.tiles import in_tiles
from pointillist.types import Given, InputError

from .contract.test_models import toy


def case(b=3, k=20, m=9, axes=2):
    draw = Draw(4, torch.arange(b))
    where, at = (draw.uniform(name, (n, axes)) * 2 - 1 for name, n in (("where", k), ("at", m)))
    count = torch.tensor([m, 4, 0])[:b]
    valid = (torch.arange(m) < count[:, None])[:, None]
    label = torch.tensor([0, -1, 2])[:b]
    given = Given(label=label, where=where, at=at, value=draw.normal("v", (2, m)), valid=valid)
    return draw.normal("x", (2, k)), draw.uniform("t"), given


def model_of(axes=2, **more):
    return toy(HybridConfig, (8,) * axes, **({"radius": 0.3, "depth": 2, "width": 32} | more))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("form", ["selective", "dual"])
def test_a_batch_with_different_counts_equals_its_samples_one_by_one(form, axes):
    network = Network(model_of(axes, form=form))
    x, t, given = case(axes=axes)
    whole = network(x, t, given).value
    for i, m in enumerate((9, 4, 0)):
        one = Given(label=given.label[i : i + 1], where=given.where[i : i + 1])
        if m:
            at, value = given.at[i : i + 1, :m], given.value[i : i + 1, :, :m]
            one = one._replace(at=at, value=value)
        alone = network(x[i : i + 1], t[i : i + 1], one).value
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


def test_the_far_is_heard_of_through_the_scans_alone():
    """A hundred radii off, along the curve."""
    model = model_of(radius=0.02)
    x, t, given = case(b=1)
    before = model(x, t, given).value
    other = given._replace(value=given.value + 5)
    assert (model(x, t, other).value - before).abs().max() > 0
    with torch.no_grad():
        for scan in model.scans:
            scan.modulation.weight.zero_()
            scan.modulation.bias.zero_()
    near = model(x, t, given).value
    torch.testing.assert_close(model(x, t, other).value, near, rtol=0, atol=0)
    assert (model(x + 1, t, given).value - near).abs().max() > 0.01


def test_every_weight_learns():
    model = model_of()
    x, t, given = case()
    model(x, t, given).value.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_it_has_no_reach_hence_no_tiles():
    network = Network(model_of())
    assert network.takes.reach == ()
    with pytest.raises(InputError, match="leave tile out"):
        in_tiles(network, 0.5)
    with pytest.raises(InputError, match="model.state is 0"):
        HybridConfig(state=0)
