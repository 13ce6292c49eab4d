"""Known pixels: every grid model sees them, and alike in training and in sampling."""

import dataclasses

import pytest
import torch

from pointillist.draws import Draw
from pointillist.encoders import GridConfig
from pointillist.gradient import backward
from pointillist.layers.hints import HintPatches
from pointillist.models import Network, PixelDiTConfig
from pointillist.run import Run
from pointillist.sample import Trained
from pointillist.samplers import SAMPLERS, STOCHASTIC
from pointillist.tasks import HintsConfig, show
from pointillist.types import Batch, Given, InputError

from .test_models import CONFIGS, GRIDS, SIZES, asked, built, spec_of, toy

HINTED = [config for config in CONFIGS if hasattr(config(), "encoder")]
# A run of pictures with labels alone; captions would come with the data.
SPEECHLESS = [config for config in HINTED if not built(config, (8, 8)).takes.text]
every = pytest.mark.parametrize("config", HINTED)
SIZE = (8, 12)


def test_every_model_on_patches_takes_hints():
    assert HINTED == GRIDS


def hinted(config, size=SIZE):
    network = Network(toy(config, size, encoder=GridConfig()))
    x, t, given = asked(size)
    mask = Draw(2, torch.arange(3)).uniform("mask", (1, *size)) < 0.4
    return network, x, t, given, mask


@pytest.mark.parametrize("size", SIZES)
@every
def test_hints_change_the_answer_and_what_is_hidden_does_not(config, size):
    network, x, t, given, mask = hinted(config, size)
    clean = Draw(3, torch.arange(3)).normal("clean", (2, *size))
    seen = network(x, t, given._replace(seen=clean, mask=mask)).value
    other = torch.where(mask, clean, torch.nan)
    assert torch.equal(network(x, t, given._replace(seen=other, mask=mask)).value, seen)
    assert (seen - network(x, t, given).value).abs().max() > 1e-3


@every
def test_nothing_known_is_the_same_said_either_way(config):
    network, x, t, given, mask = hinted(config)
    nothing = given._replace(seen=x, mask=torch.zeros_like(mask))
    torch.testing.assert_close(network(x, t, nothing).value, network(x, t, given).value)


@every
@pytest.mark.parametrize("level", [-1.0, 0.0], ids=["black", "grey"])
def test_a_hint_of_any_colour_differs_from_no_hint(config, level):
    network, x, t, given, mask = hinted(config)
    seen = network(x, t, given._replace(seen=torch.full_like(x, level), mask=mask)).value
    assert (seen - network(x, t, given).value).abs().max() > 1e-3


@every
def test_the_hint_of_one_pixel_changes_others(config):
    network, x, t, given, mask = hinted(config)
    mask[..., 1, 1] = True
    other = x.clone()
    other[..., 1, 1] += 1
    before, after = (network(x, t, given._replace(seen=s, mask=mask)).value for s in (x, other))
    change = (before - after).abs().amax((0, 1))
    change[1, 1] = 0
    assert change[:4, :4].max() > 1e-5, "in its own patch"
    assert change[4:, 8:].max() > 1e-6, "far away"


@every
def test_a_context_with_hints_equals_one_made_inside(config):
    network, x, t, given, mask = hinted(config)
    given = given._replace(seen=x, mask=mask)
    context = network.condition(given, SIZE)
    assert torch.equal(network(x, t, given, context).value, network(x, t, given).value)


@every
def test_hints_on_another_grid_or_of_single_channels_are_refused(config):
    network, x, t, given, mask = hinted(config)
    with pytest.raises(InputError, match="hints lie on a grid of 8x8.*the picture has 8x12"):
        network(x, t, given._replace(seen=x[..., :8], mask=mask[..., :8]))
    half = mask.expand(-1, 2, -1, -1).clone()
    half[:, 0] = False
    with pytest.raises(InputError, match="some channels of a pixel only"):
        network(x, t, given._replace(seen=x, mask=half))


class Overheard:
    """What a model and its hint layer are shown, call by call."""

    def __init__(self, model, monkeypatch):
        self.hints, self.states = [], []
        plain = HintPatches.forward

        def forward(layer, hints):
            self.hints.append(hints.detach().clone())
            return plain(layer, hints)

        monkeypatch.setattr(HintPatches, "forward", forward)
        if model.takes.renders:  # training asks for this, forward goes through it
            answer = model.render

            def render(xt, t, *more, **named):
                self.states.append((xt.detach().clone(), t.clone()))
                return answer(xt, t, *more, **named)

            monkeypatch.setattr(model, "render", render)
            return
        model.register_forward_pre_hook(
            lambda _, given: self.states.append((given[0].detach().clone(), given[1].clone()))
        )


@pytest.mark.parametrize("config", SPEECHLESS)
@pytest.mark.parametrize("absent", [0.0, 0.999], ids=["with hints", "without hints"])
def test_training_and_sampling_are_shown_the_same(config, absent, monkeypatch):
    """Hints reach the model in sampling as in training, bit for bit; known pixels of the state lie
    on their path t x + (1 - t) eps at every step, as they do in training.
    """
    task = HintsConfig(share=(0.2, 0.6), absent=absent)
    model = toy(config, SIZE, encoder=GridConfig())
    run = Run(model=model.config, task=task)
    x = asked(SIZE)[0].clamp(-1, 1)
    batch = Batch(torch.arange(3), x, label=torch.tensor([0, 1, 2]))
    ears = Overheard(model, monkeypatch)
    backward(run, Network(model), batch, torch.device("cpu"))
    trained_on = ears.hints.pop()
    state, t = ears.states.pop()

    draw = Draw(run.seed, batch.index)
    flipped, mask = run.augment(batch, draw).x, task.revealed(draw, SIZE).shown
    at = t.view(-1, 1, 1, 1)
    assert torch.equal(state, at * flipped + (1 - at) * run.objective.noise(draw, (2, *SIZE)))
    known = None if absent else Given(seen=flipped, mask=mask)
    assert absent == 0 or not mask.any()
    speechless = dataclasses.replace(spec_of(SIZE), words=None)
    trained = Trained(run, speechless, model, torch.device("cpu"))
    noise = run.objective.noise(Draw(0, torch.arange(3)), (2, *SIZE), "sample")
    for sampler in SAMPLERS:
        found = trained.sample(3, steps=4, sampler=sampler, guidance=2.0, known=known)
        for sampled_from in ears.hints:
            assert torch.equal(trained_on, sampled_from.expand_as(trained_on))
        assert ears.states
        if known is not None:
            assert 0 < mask.float().mean() < 1
            for state, t in ears.states:
                at = t.view(-1, 1, 1, 1)
                if sampler in STOCHASTIC:  # its noise is renewed
                    noise_now = (state - at * flipped) / (1 - at)
                    # Steps are long, and Heun asks with the step's noise, then without any new.
                    low = 0.5 if sampler == "euler_maruyama" else 0
                    assert low <= noise_now[mask.expand_as(state)].std() < 2.5
                    continue
                path = at * flipped + (1 - at) * noise
                off = torch.where(mask, state - path, 0).abs().max()
                assert off < 1e-5, f"{sampler} leaves the path by {off} at {float(t[0])}"
            assert torch.equal(torch.where(mask, found, 0), show(Given(), flipped, mask).seen)
        ears.hints.clear()
        ears.states.clear()


def test_the_share_of_known_pixels_is_the_one_that_was_asked_for():
    draw = Draw(0, torch.arange(4000))
    fixed = (
        HintsConfig(share=0.25, absent=0.2).revealed(draw, (8, 8)).shown.float().flatten(1).mean(1)
    )
    assert (fixed == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert fixed[fixed > 0].mean() == pytest.approx(0.25, abs=0.01)
    ranged = HintsConfig(share=(0.1, 0.7), absent=0.0).revealed(draw, (16, 16)).shown.float()
    share = ranged.flatten(1).mean(1)
    assert share.mean() == pytest.approx(0.4, abs=0.01)
    assert share.std() == pytest.approx(0.6 / 12**0.5, rel=0.1)


def test_known_pixels_count_little_in_the_loss():
    x = torch.zeros(2, 3, 4, 4)
    task = HintsConfig(share=0.5, absent=0.0, weight=0.1)
    batch, given = task(Batch(torch.arange(2), x), Draw(0, torch.arange(2)))
    assert torch.equal(batch.weight, torch.where(given.mask, 0.1, 1.0))


def test_gaps_are_not_known():
    x, weight = torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
    weight[..., :2] = 0
    task = HintsConfig(share=0.99, absent=0.0)
    batch, given = task(Batch(torch.arange(2), x, weight=weight), Draw(0, torch.arange(2)))
    assert not given.mask[..., :2].any() and given.mask[..., 2:].any()
    assert not batch.weight[..., :2].any()


@every
def test_a_value_without_a_mask_is_known(config):
    network, x, t, given, mask = hinted(config)
    every = torch.ones_like(mask)
    plain = network(x, t, given._replace(seen=x)).value
    assert torch.equal(plain, network(x, t, given._replace(seen=x, mask=every)).value)
    with pytest.raises(InputError, match="hints have 1 channels and a mask of torch.bool"):
        network(x, t, given._replace(seen=x[:, :1], mask=mask))


def test_hints_are_encoded_once_and_answer_the_same_as_in_training():
    """Without gradients pixeldit makes the hints' modulation once, with them in every block."""
    network, x, t, given, mask = hinted(PixelDiTConfig)
    given = given._replace(seen=x, mask=mask)
    with torch.no_grad():
        context = network.condition(given, SIZE)
        assert context.pixel_hint.made_leave is not None
        value = network(x, t, given, context).value
    kept = network.condition(given, SIZE)
    assert kept.pixel_hint.made_leave is None
    torch.testing.assert_close(network(x, t, given, kept).value, value)
