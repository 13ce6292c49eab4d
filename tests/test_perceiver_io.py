"""What sets Perceiver IO apart: points in, any places out, and latents that see the noisy ones."""

import pytest
import torch

from pointillist.draws import Draw
from pointillist.layers.observations import centres
from pointillist.layers.perceiver import GaussianFeatures
from pointillist.models import Network, PerceiverIOConfig
from pointillist.run import Run
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
    return toy(PerceiverIOConfig, (8,) * axes, **more)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("noisy", [True, False])
def test_a_batch_with_different_counts_equals_its_samples_one_by_one(noisy, axes):
    network = Network(model_of(axes, noisy_queries=noisy))
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


def test_noisy_places_speak_to_one_another_only_where_the_latents_see_them():
    x, t, given = case()
    other = x.clone()
    other[:, :, 0] += 1
    for noisy in (True, False):
        network = Network(model_of(noisy_queries=noisy))
        apart = (network(other, t, given).value - network(x, t, given).value).abs().amax((0, 1))
        assert apart[0] > 1e-3 and (apart[1:] > 1e-6).all() == noisy
        assert noisy or not apart[1:].any()


def test_what_is_observed_matters_at_once_and_where_it_lies_does_too():
    network = Network(model_of())
    x, t, given = case(1)
    base = network(x, t, given).value
    for other in (given._replace(value=given.value + 1), given._replace(at=-given.at)):
        assert (network(x, t, other).value - base).abs().max() > 1e-3


def test_repeats_share_their_weights_and_count():
    one, two = (model_of(repeats=n) for n in (1, 2))
    two.load_state_dict(one.state_dict())
    x, t, given = case()
    answers = [Network(m)(x, t, given).value for m in (one, two)]
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in two.parameters())


def test_features_have_the_stated_spread_and_are_the_same_in_every_run():
    features = GaussianFeatures(3, 4000, 5.0)
    drawn = features.frequencies(torch.device("cpu"))
    assert drawn.std().item() == pytest.approx(5.0, rel=0.03) and abs(drawn.mean()) < 0.2
    at = centres((3, 4, 5))
    assert torch.equal(features(at), GaussianFeatures(3, 4000, 5.0)(at))


@pytest.mark.parametrize("field", ["width", "latents", "depth", "repeats", "frequencies"])
def test_a_size_of_nothing_is_refused(field):
    with pytest.raises(InputError, match=f"model.{field} is 0"):
        PerceiverIOConfig(**{field: 0})


def test_the_small_preset_has_at_most_two_million_parameters():
    model = Run.load("cifar10-perceiverio-small").model.build(spec_of((32, 32), 10, 3))
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
