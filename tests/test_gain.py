"""The penalty on the scales of modulations: what it sees, of which models, by which gradient."""

import threading

import pytest
import torch
from torch import nn

import pointillist as pt
from pointillist.data.loader import batches
from pointillist.describe import describe
from pointillist.draws import Draw
from pointillist.engine.recompute import recompute_blocks
from pointillist.gradient import backward
from pointillist.layers.gain import Gains, gain, gains
from pointillist.layers.norm import PlainLayerNorm, RMSNorm, modulate, modulated_norm
from pointillist.losses import LossConfig
from pointillist.losses.gain import GainConfig
from pointillist.models import DiTConfig, Network
from pointillist.run import Run
from pointillist.types import InputError

from .contract.test_models import CONFIGS, asked, part_of, toy

CPU = torch.device("cpu")
SIZE = (8, 12)
FREE = {"diffit", "diffit_flat"}  # time steers their attention, and nothing is scaled
PIXELS = {"pixeldit", "pixeldit_text", "pixelhdm"}


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return Draw(seed, torch.arange(shape[0])).normal("noise", shape[1:])


def squares(model: nn.Module, places: bool = False) -> torch.Tensor | None:
    x, t, given = asked(SIZE)
    found = Gains(places)
    with gains(found):
        Network(model)(x, t, given)
    return found.sum()


def test_the_squares_are_a_samples_own_means_summed_over_modulations():
    one, other = noise(4, 5), noise(4, 3, 2, 6)
    found, of_places = Gains(), Gains(places=True)
    for wanted in (found, of_places):
        with gains(wanted):
            assert torch.equal(gain(one.requires_grad_()), 1 + one)
            gain(other)
    expected = [(a**2).mean() + (b**2).mean() for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(found.sum(), torch.stack(expected))
    torch.testing.assert_close(of_places.sum(), (other**2).mean((1, 2, 3)))
    assert Gains().sum() is None


@pytest.mark.parametrize("norm", [RMSNorm(6), PlainLayerNorm(6)])
def test_a_modulated_norm_shows_its_scale_once(norm):
    x, shift, scale = noise(2, 3, 6), noise(2, 6), noise(2, 6, seed=4).requires_grad_()
    found = Gains()
    with gains(found):
        a = modulated_norm(norm, x, shift, scale)
    b = modulate(norm(x), shift, scale)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(found.sum(), scale.square().mean(1))


def test_nobody_is_shown_anything_without_gradients_or_outside():
    found = Gains()
    with gains(found), torch.no_grad():
        gain(noise(2, 3))
    gain(noise(2, 3))
    assert found.sum() is None


@pytest.mark.parametrize("config", CONFIGS)
def test_every_model_that_modulates_shows_its_scales_and_answers_as_before(config):
    model = toy(config, SIZE).train()
    x, t, given = asked(SIZE)
    with torch.no_grad():
        before = Network(model)(x, t, given).value
    found = Gains()
    with gains(found):
        assert torch.equal(Network(model)(x, t, given).value, before)
    total, kind = found.sum(), model.config.kind
    assert (total is None) == (kind in FREE)
    assert (squares(model, places=True) is None) == (kind not in PIXELS)
    if total is not None:
        assert total.shape == x.shape[:1] and (total > 0).all()


@pytest.mark.parametrize("config", [c for c in CONFIGS if c().kind not in FREE])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_sample_has_its_own_square_and_its_gradient_however_blocks_are_computed(
    config, recompute
):
    plain = toy(config, SIZE).train()
    squares(plain).sum().backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert any(g is not None and g.any() for g in expected.values())
    model = toy(config, SIZE).train()
    model = recompute_blocks(model) if recompute else model
    x, t, given = asked(SIZE)
    parts = []
    for i in range(x.shape[0]):
        some = part_of(given, slice(i, i + 1))
        found = Gains()
        with gains(found):
            value = Network(model)(x[i : i + 1], t[i : i + 1], some).value
            parts.append(found.sum())
            # On CUDA backward runs in a thread of its own.
            thread = threading.Thread(target=(parts[-1].sum() + 0 * value.sum()).backward)
            thread.start()
            thread.join()
        assert not found.squares
    torch.testing.assert_close(torch.cat(parts), squares(plain), rtol=1e-5, atol=1e-7)
    for name, p in model.named_parameters():
        if expected[name] is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_the_scales_of_a_linear_modulation_have_their_known_square():
    """One block whose modulation is a bias: what is penalised is that bias, not shift or gate."""
    model = toy(DiTConfig, SIZE, depth=1).train()
    with torch.no_grad():
        for layer in (model.blocks[0].modulation, model.modulation):
            layer.weight.zero_()
            layer.bias.copy_(torch.arange(len(layer.bias)) / len(layer.bias))
    shift1, scale1, gate1, shift2, scale2, gate2 = model.blocks[0].modulation.bias.chunk(6)
    expected = sum((scale**2).mean() for scale in (scale1, scale2, model.modulation.bias[32:]))
    torch.testing.assert_close(squares(model), expected.expand(3))


TOY = (
    "model.width=16", "model.depth=2", "model.heads=2", "model.patch_size=8", "train.images=48",
    "train.batch=16", "train.save_every=48", "train.log_every=16", "train.grid=0",
    "train.validate=0", "loss.gain.weight=0.5",
)  # fmt: skip


@pytest.mark.parametrize("again", [False, True])
def test_the_term_is_logged_weighted_and_the_same_in_micro_batches(again):
    run = Run.load("debug", *TOY)
    model = run.model.build(run.data.promise())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    model = recompute_blocks(model) if again else model
    batch = next(batches(run.data.open("train"), run.seed, 0, 12, 12))
    found, slopes = [], []
    for size in (0, 5):
        model.zero_grad()
        found.append(backward(run, Network(model), batch, CPU, size))
        slopes.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert set(found[0]) == {"loss", "velocity", "gain"} and found[0]["gain"] > 0
    whole = found[0]["velocity"] + 0.5 * found[0]["gain"]
    torch.testing.assert_close(found[0]["loss"], whole)
    for a, b in (found, slopes):
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6)


def test_a_run_is_held_to_small_scales(tmp_path):
    ends = []
    for weight in (1e-4, 1e3):
        steps: list[dict] = []
        run = Run.load("debug", *TOY, f"loss.gain.weight={weight}", "optim.lr=0.01",
                       "optim.warmup=0", "train.images=96")  # fmt: skip
        pt.train(run, tmp_path / str(weight), report=steps.append)
        ends.append([e["gain"] for e in steps if e["event"] == "step"][-1])
    assert 0 < ends[1] < ends[0] / 2


def test_what_backward_keeps_for_it_is_counted_and_hardly_more_than_without():
    plain, held = (
        describe(Run.load("cifar10-pixeldit", *more), Run.load("debug").data.promise())
        for more in ((), ("loss.gain={weight: 1e-4, of: places}",))
    )
    more = held["activation_bytes"] - plain["activation_bytes"]
    assert 0 <= more < 0.02 * plain["activation_bytes"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cifar10-diffit-small", "loss.gain.weight=1e-4"), "diffit modulates nothing by a scale"),
        (("debug", "loss.gain={weight: 1, of: places}"), "jit has no scale for every pixel; set l"),
    ],
)
def test_a_model_without_such_scales_is_refused(words, told):
    run = Run.load(*words)
    with pytest.raises(InputError, match=told):
        describe(run, run.data.promise())


def test_a_penalty_alone_teaches_nothing_and_a_field_without_weight_is_refused():
    with pytest.raises(InputError, match="loss.gain alone cannot tell pixels what to be"):
        LossConfig(velocity=0.0, gain=GainConfig(weight=1.0))
    with pytest.raises(InputError, match="loss.gain.of is places, but loss.gain.weight is 0"):
        GainConfig(of="places")
