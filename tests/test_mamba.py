"""What sets the state space apart: a curve through points and places, and two causal passes."""

import pytest
import torch

from pointillist.layers.mamba import BothWays, Mamba
from pointillist.models import MambaConfig, Network
from pointillist.run import Run
from pointillist.types import Given, InputError

from .contract.test_models import spec_of, toy
from .test_perceiver_io import case

FORMS = pytest.mark.parametrize("form", ["selective", "dual"])


def model_of(axes=2, **more):
    return toy(MambaConfig, (8,) * axes, **more)


def test_what_comes_later_changes_nothing_before_it():
    torch.manual_seed(0)
    block, h = Mamba(8, 4), torch.randn(2, 9, 8)
    other = h.clone()
    other[:, 5] += 1
    apart = (block(other) - block(h)).abs().amax((0, 2))
    assert not apart[:5].any() and (apart[5:] > 0).all()


@FORMS
def test_both_ways_each_token_hears_of_every_other(form):
    torch.manual_seed(0)
    block, h = BothWays(8, 4, form=form), torch.randn(2, 9, 8)
    other = h.clone()
    other[:, 5] += 1
    assert ((block(other) - block(h)).abs().amax((0, 2)) > 0).all()


@FORMS
def test_tokens_that_are_not_valid_are_as_if_they_were_not_there(form):
    torch.manual_seed(0)
    block = BothWays(8, 4, form=form)
    h, valid = torch.randn(7, 9, 8, requires_grad=True), torch.rand(7, 9) < 0.6
    valid[2], valid[5], valid[6] = True, False, torch.arange(9) == 8
    mixed = block(h, valid)
    for i in (0, 1, 2, 3, 4, 6):
        alone = block(h[i : i + 1, valid[i]])
        torch.testing.assert_close(mixed[i, valid[i]], alone[0], rtol=1e-4, atol=1e-6)
    assert mixed.isfinite().all()
    (gradient,) = torch.autograd.grad(mixed[valid].sum(), h)
    assert not gradient[~valid].any() and gradient[valid].any()


def test_steps_and_decays_begin_where_the_paper_says_and_do_not_decay():
    block = Mamba(16, 4).ahead
    steps = torch.nn.functional.softplus(block.step.bias)
    assert (steps > 0.9e-3).all() and (steps < 0.11).all() and steps.max() > 5 * steps.min()
    torch.testing.assert_close(block.log_a.exp().view(32, 4)[3], torch.arange(1.0, 5))
    assert block.log_a.dim() == block.skip.dim() == 1  # AdamW decays what has two axes


@FORMS
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("curve", ["hilbert", "zorder"])
def test_a_batch_with_different_counts_equals_its_samples_one_by_one(curve, axes, form):
    network = Network(model_of(axes, curve=curve, form=form))
    x, t, given = case(axes=axes)
    whole = network(x, t, given).value
    for i, m in enumerate((9, 4, 0)):
        one = Given(label=given.label[i : i + 1], where=given.where[i : i + 1])
        if m:
            at, value = given.at[i : i + 1, :m], given.value[i : i + 1, :, :m]
            one = one._replace(at=at, value=value)
        alone = network(x[i : i + 1], t[i : i + 1], one).value
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


@FORMS
def test_neither_the_order_of_points_nor_that_of_places_matters(form):
    network = Network(model_of(form=form))
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


@pytest.mark.parametrize("change", ["value", "at", "where", "t", "x"])
def test_everything_that_is_given_matters_at_every_place(change):
    network = Network(model_of())
    x, t, given = case(1)
    base = network(x, t, given).value
    if change == "t":
        other = network(x, t / 2, given).value
    elif change == "x":
        other = network(x + (torch.arange(20) == 3), t, given).value
    else:
        moved = getattr(given, change) * 0.5
        other = network(x, t, given._replace(**{change: moved})).value
    # From a place to one far along the curve little comes through at first, but never nothing.
    assert ((other - base).abs().amax((0, 1)) > 0).all()


def test_the_curve_is_a_choice_that_matters():
    x, t, given = case(1)
    a, b = (Network(model_of(curve=c))(x, t, given).value for c in ("hilbert", "zorder"))
    assert (a - b).abs().max() > 1e-3


@FORMS
def test_gradients_reach_every_weight(form):
    model = model_of(form=form)
    x, t, given = case()
    Network(model)(x, t, given).value.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("field", ["width", "depth", "state", "expand", "conv", "frequencies"])
def test_a_size_of_nothing_is_refused(field):
    with pytest.raises(InputError, match=f"model.{field} is 0"):
        MambaConfig(**{field: 0})


def test_the_small_preset_has_at_most_two_million_parameters():
    model = Run.load("cifar10-mamba-small").model.build(spec_of((32, 32), 10, 3))
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
