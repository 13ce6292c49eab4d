"""The convolutional network that mends an interpolation, and the encoder that begins with it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pointillist.encoders import Site, UNetConfig
from pointillist.gradient import backward
from pointillist.layers.splat import splat
from pointillist.layers.unet import UNet
from pointillist.losses import LossConfig, criterion
from pointillist.models import DiTConfig, JiTConfig, Network, PixelDiTConfig
from pointillist.models.pixnerd import PixNerdConfig
from pointillist.run import Run
from pointillist.types import Batch, Estimate, Given, InputError, Spec, grid_axes

SMALL = UNetConfig(widths=(16, 32), depths=(1, 2))
grids = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gridded(size: tuple[int, ...], rows: int = 2, channels: int = 3) -> Given:
    mask = noise(rows, 1, *size, seed=1) > 0.5
    mask.flatten()[0] = True
    return Given(seen=torch.where(mask, noise(rows, channels, *size, seed=2), 0), mask=mask)


@settings(deadline=None, max_examples=30)
@given(size=grids, stages=st.integers(1, 3))
def test_any_grid_comes_out_as_fine_as_it_goes_in(size, stages):
    widths = (16, 16, 32)[:stages]
    unet = UNet(len(size), 5, widths, (1, 2, 1)[:stages]).double()
    x = noise(3, 5, *size).double()
    answer = unet(x)
    assert answer.shape == (3, 16, *size) and answer.isfinite().all()
    torch.testing.assert_close(unet(x[1:2]), answer[1:2], atol=1e-9, rtol=1e-9)


def test_the_coarsest_stage_sees_the_whole_map():
    unet = UNet(2, 1, (16, 16, 16), (1, 1, 3)).double()
    for stage in (*unet.down, *unet.up):  # statistics of a whole map would tell of all of it
        for i, layer in enumerate(stage):
            if isinstance(layer, nn.GroupNorm):
                stage[i] = nn.Identity()
    x = noise(1, 1, 16, 16).double().requires_grad_()
    (slope,) = torch.autograd.grad(unet(x)[0, :, 0, 0].sum(), x)
    assert slope[0, 0, 12, 0].abs() > 0 and slope[0, 0, 0, 12].abs() > 0
    short = UNet(2, 1, (16,), (3,)).double()
    for i, layer in enumerate(short.down[0]):
        if isinstance(layer, nn.GroupNorm):
            short.down[0][i] = nn.Identity()
    (slope,) = torch.autograd.grad(short(x)[0, :, 0, 0].sum(), x)
    assert slope[0, 0, 12, 0] == 0


def test_a_map_of_zeros_has_gradients_like_others():
    """It is what a picture is of which nothing is known."""
    torch.manual_seed(0)
    encoder, norms = UNetConfig().build(Site(3, (32, 32), 4, 8, 2)), []
    inside = encoder.unet.down[0][0].in_channels
    for x in (torch.zeros(2, inside, 32, 32), noise(2, inside, 32, 32)):
        encoder.zero_grad()
        (encoder.unet(x) - noise(2, 32, 32, 32, seed=1)).square().mean().backward()
        norms.append(max(float(p.grad.norm()) for p in encoder.parameters() if p.grad is not None))
    assert norms[0] < 100 * norms[1]


@pytest.mark.parametrize("config", [DiTConfig, JiTConfig, PixelDiTConfig, PixNerdConfig])
def test_a_backbone_starts_as_the_interpolation_and_learns_from_there(config):
    size, observed = (8, 12), gridded((8, 12))
    assert observed.seen is not None and observed.mask is not None
    more = {"context_start": 0} if config is JiTConfig else {}
    torch.manual_seed(0)
    spec = Spec(channels=3, axes=grid_axes(size))
    model = config(width=32, depth=1, heads=2, patch_size=2, encoder=SMALL, **more).build(spec)
    network, x, t = Network(model), noise(2, 3, *size), torch.tensor([0.1, 0.9])
    fill = splat(observed.seen, observed.mask.float()).filled
    if config is not PixNerdConfig:  # its field begins at random
        assert torch.equal(network(x, t, observed).value, fill)
    before = {name: p.clone() for name, p in model.encoder.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0)
    for _ in range(4):
        optimizer.zero_grad()
        (network(x, t, observed).value - 0.3).square().mean().backward()
        optimizer.step()
    for name, p in model.encoder.named_parameters():
        assert not torch.equal(p, before[name]), name
    context = network.condition(observed, size)
    assert torch.equal(network(x, t, observed, context).value, network(x, t, observed).value)
    assert network(x, t, Given()).value.isfinite().all()


def test_the_guess_is_learnt_without_the_blocks():
    """A regression on the guess alone beats the interpolation that it starts from."""
    size = (16, 16)
    torch.manual_seed(0)
    encoder = SMALL.build(Site(1, size, 4, 8, 2))
    across = torch.linspace(0, 3, 16)
    truth = torch.stack([torch.sin(across[:, None] * a + across * b) for a in (1, 2, 3)
                         for b in (1, 2)])[:, None]  # fmt: skip
    mask = noise(6, 1, *size) > 1.2
    observed = Given(seen=torch.where(mask, truth, 0), mask=mask)
    optimizer = torch.optim.AdamW(encoder.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (encoder.guess(encoder.condition(observed, size, (4, 4))) - truth).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_a_finer_answer_gets_the_finer_interpolation_and_what_was_learnt():
    size, finer = (8, 8), (16, 16)
    torch.manual_seed(0)
    encoder = SMALL.build(Site(3, size, 2, 16, 2))
    seen = Given(seen=noise(1, 3, *size), mask=torch.ones(1, 1, *size, dtype=torch.bool))
    plain = encoder.condition(seen, size, (4, 4), finer).guess
    with torch.no_grad():
        encoder.mend.weight.normal_()
    mended = encoder.condition(seen, size, (4, 4), finer).guess
    here = encoder.condition(seen, size, (4, 4)).guess
    assert plain.shape == mended.shape == (1, 3, *finer)
    added = (here - splat(seen.seen, torch.ones(1, 1, *size)).filled)[0]
    # What was learnt is as large between cells as in them.
    means = [float(x.detach().mean()) for x in (mended - plain, added)]
    assert math.isclose(*means, rel_tol=0.2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("scales", (1.0, 2.0)), ("scales", ()), ("widths", ()), ("widths", (16, 20)),
     ("depths", (1,)), ("depths", (1, 0, 1))],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(field, value):
    with pytest.raises(InputError, match=rf"model\.encoder\.{field} is .*; give"):
        UNetConfig(**{field: value})


def test_the_regression_counts_where_the_weight_does_and_teaches_the_encoder_alone():
    """At a weight that drowns the rest the blocks' gradients stay what they were."""
    words = ["train.batch=4", "train.precision=float32", "model.encoder.widths=[16]",
             "model.encoder.depths=[1]", "model.width=32", "model.depth=1",
             "model.heads=2"]  # fmt: skip
    run = Run.load("cifar10-unet-small", *words, "loss.regression=1e3")
    plain = Run.load("cifar10-unet-small", *words, "loss.regression=0")
    batch = Batch(x=noise(4, 3, 32, 32).clamp(-1, 1), index=torch.arange(4))
    found = []
    for of in (run, plain):
        torch.manual_seed(0)
        model = of.model.build(Spec(channels=3, axes=grid_axes((32, 32))))
        with torch.no_grad():  # at zero, nothing behind them would be told anything
            model.field.head.weight.normal_(std=0.1)
            model.encoder.mend.weight.normal_(std=0.1)
        terms = backward(of, Network(model), batch, torch.device("cpu"))
        found.append(({name: p.grad for name, p in model.named_parameters()}, terms))
    (gradients, terms), (others, other_terms) = found
    torch.testing.assert_close(
        terms["loss"], terms["velocity"] + 1e3 * terms["regression"], rtol=1e-5, atol=0
    )
    assert "regression" not in other_terms and terms["velocity"] == other_terms["velocity"]
    for name, gradient in gradients.items():
        taught = name.startswith("encoder.") and not name.endswith("linear.weight")
        assert torch.equal(gradient, others[name]) != taught, name


def test_the_regression_is_the_weighted_mean_square_of_the_guess_itself():
    truth = Estimate(noise(3, 2, 4, 4, seed=1), noise(3, 2, 4, 4, seed=2))
    weight, guess = torch.rand(3, 1, 4, 4), noise(1, 2, 4, 4, seed=3)
    config = LossConfig(regression=2.0)
    total, terms = criterion(config, truth, truth, weight, lacking=truth.x - guess)
    wanted = ((guess - truth.x).square() * weight).flatten(1).mean(1)
    torch.testing.assert_close(terms["regression"], wanted)
    torch.testing.assert_close(total, 2 * wanted)
    total, terms = criterion(LossConfig(), truth, truth, weight, lacking=truth.x - guess)
    assert "regression" not in terms and torch.equal(total, torch.zeros(3))


@pytest.mark.parametrize(
    "words",
    [["cifar10-splat-small"], ["cifar10-jit"],
     ["cifar10-unet-small", "model.encoder.residual=false"], ["cifar10-mamba-small"]],
)  # fmt: skip
def test_a_regression_without_a_picture_that_is_learnt_is_refused(words):
    run = Run.load(*words, "loss.regression=1")
    with pytest.raises(InputError, match="loss.regression is 1, .* set model.encoder.kind=unet"):
        run.check(run.promise())


def test_a_regression_has_a_weight_and_never_stands_alone():
    with pytest.raises(InputError, match="loss.regression is -1.0; a weight is 0 or more"):
        LossConfig(regression=-1.0)
    with pytest.raises(InputError, match="and loss.regression alone cannot tell pixels"):
        LossConfig(velocity=0.0, regression=1.0)
