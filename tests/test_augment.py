"""The same picture, seen otherwise: drawn by the sample's own number, told by labels."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.augment import LABELS, AugmentConfig
from pointillist.draws import Draw
from pointillist.gradient import shown
from pointillist.models import Network
from pointillist.run import Run
from pointillist.types import Batch, Code, InputError

from .contract.test_models import CONFIGS, asked, toy

INDEX = torch.arange(200)
X = Draw(0, INDEX).normal("x", (2, 3, 4))


def smooth(h: int, w: int, b: int = 1) -> torch.Tensor:
    """A picture that interpolation does not harm, unlike its mirror images."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return torch.stack((torch.sin(2 * x + y), torch.cos(x - 2 * y))).expand(b, 2, h, w) * 0.9


def test_half_of_the_samples_are_turned_whatever_they_are_batched_with():
    draw = Draw(1, INDEX)
    whole = AugmentConfig()(Batch(INDEX, X), draw).x
    turned = (whole == X.flip(-1)).flatten(1).all(1)
    assert ((whole == X).flatten(1).all(1) ^ turned).all() and 70 < int(turned.sum()) < 130
    part = Batch(INDEX[5:9], X[5:9])
    assert torch.equal(AugmentConfig()(part, Draw(1, INDEX[5:9])).x, whole[5:9])
    assert AugmentConfig(flip=False)(Batch(INDEX, X), draw).x is X


def test_a_weight_is_turned_with_its_picture():
    found = AugmentConfig()(Batch(INDEX, X, weight=X.abs()), Draw(1, INDEX))
    assert torch.equal(found.weight, found.x.abs())


@pytest.mark.parametrize(
    ("config", "field"),
    [(AugmentConfig(), "flip is true"), (AugmentConfig(flip=False, geometric=0.5), "geometric is")],
)
def test_scattered_samples_are_not_turned(config, field):
    batch = Batch(INDEX, X.flatten(2), where=torch.zeros(200, 12, 2))
    with pytest.raises(InputError, match=f"augment.{field}.*but the data are scattered"):
        config(batch, Draw(1, INDEX))


def test_each_transformation_is_done_with_its_probability_and_told():
    index = torch.arange(4000)
    batch = Batch(index, torch.zeros(4000, 1, 2, 2))
    labels = AugmentConfig(geometric=0.12)(batch, Draw(0, index)).augment
    assert labels.shape == (4000, LABELS)
    done = (labels != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, *[0.12] * 7])
    torch.testing.assert_close(done, expected, rtol=0, atol=0.025)
    # Each group's two labels come together; scale and shifts are normal.
    for pair in ((3, 4), (5, 6), (7, 8)):
        assert torch.equal(labels[:, pair[0]] != 0, labels[:, pair[1]] != 0)
    for column in (2, 7, 8):
        found = labels[:, column][labels[:, column] != 0]
        assert abs(found.mean()) < 0.2 and abs(found.std() - 1) < 0.12


def test_labels_tell_the_whole_transformation():
    """Scaled, turned, stretched, shifted, in this order: made anew from the labels alone."""
    index = torch.arange(300)
    for h, w in ((8, 8), (6, 15)):
        edges = torch.tensor([w, h]) / min(h, w)
        labels, back = AugmentConfig(geometric=0.6)._drawn(Draw(2, index), torch.zeros(300), edges)
        for label, undone in zip(labels.double(), back.double(), strict=True):
            _, _, scale, cos, sin, c, s, right, down = label
            turn = torch.stack((torch.stack((cos + 1, -sin)), torch.stack((sin, cos + 1))))
            tall = torch.stack((torch.stack((c, s)), torch.stack((s, -c))))
            bend = torch.linalg.matrix_exp(tall * 0.2 * math.log(2))
            forth = torch.eye(3, dtype=torch.float64)
            forth[:2, :2] = bend @ turn * 2 ** (0.2 * scale)
            forth[:2, 2] = torch.stack((right, down)) / 8 * 2 * edges.double()
            torch.testing.assert_close(undone, forth.inverse()[:2], rtol=1e-4, atol=1e-4)


def test_a_sample_is_turned_alike_in_any_batch_and_half_are_left_exactly():
    config, x = AugmentConfig(geometric=0.12), smooth(8, 12, 200).contiguous()
    whole = config(Batch(INDEX, x), Draw(3, INDEX))
    part = config(Batch(INDEX[20:30], x[20:30]), Draw(3, INDEX[20:30]))
    torch.testing.assert_close(part.x, whole.x[20:30], rtol=0, atol=1e-6)
    assert torch.equal(part.augment, whole.augment[20:30])
    still = (whole.augment == 0).all(1)
    assert still.sum() > 50 and torch.equal(whole.x[still], x[still])


def augmented(x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **said: float) -> torch.Tensor:
    """`x` with the named transformations at the values given, and no others."""
    names = {"augment turn": "turn", "augment stretch along": "along", "augment scale": "scale",
             "augment stretch": "stretch"}  # fmt: skip

    def uniform(self, purpose, shape=()):
        if purpose == "augment":
            order = ("upside", "scale", "turn", "stretch", "shift")
            return torch.tensor([[0.0 if name in said else 1.0 for name in order]])
        return torch.tensor([said.get(names[purpose], 0.0) / math.pi / 2 + 0.5])

    def normal(self, purpose, shape=()):
        if purpose == "augment shift":
            return torch.tensor([said.get("shift", (0.0, 0.0))])
        return torch.tensor([said.get(names[purpose], 0.0)])

    monkeypatch.setattr(Draw, "uniform", uniform)
    monkeypatch.setattr(Draw, "normal", normal)
    monkeypatch.setattr(Draw, "bits", lambda self, *_: torch.tensor([1]))
    config = AugmentConfig(flip=False, geometric=0.999)
    return config(Batch(torch.tensor([0]), x), Draw(0, torch.tensor([0]))).x


def test_a_quarter_turn_is_a_quarter_turn(monkeypatch):
    x = smooth(16, 16).contiguous()
    found = augmented(x, monkeypatch, turn=math.pi / 2)
    torch.testing.assert_close(found, x.rot90(-1, (2, 3)), rtol=0, atol=1e-5)


def test_a_half_turn_keeps_pictures_that_are_not_square(monkeypatch):
    x = smooth(8, 20).contiguous()
    found = augmented(x, monkeypatch, turn=math.pi)
    torch.testing.assert_close(found, x.flip(2, 3), rtol=0, atol=1e-5)


def test_a_shift_is_of_an_eighth_of_each_edge(monkeypatch):
    x = smooth(8, 16).contiguous()
    found = augmented(x, monkeypatch, shift=(1.0, -1.0))
    torch.testing.assert_close(found[..., :-1, 2:], x[..., 1:, :-2], rtol=0, atol=1e-5)


def test_scaling_and_stretching_undo_each_other_along_an_axis(monkeypatch):
    """exp(scale) along x times exp(-stretch): with equal numbers one axis stays as it is."""
    x = torch.linspace(-0.9, 0.9, 32)[:, None].expand(1, 1, 32, 32).contiguous()
    grown = augmented(x, monkeypatch, scale=1.0, stretch=1.0)  # along x: rows stay
    torch.testing.assert_close(grown, x, rtol=0, atol=1e-5)
    along = augmented(x.mT.contiguous(), monkeypatch, scale=1.0, stretch=1.0)
    step = (along[0, 0, 16, 24] - along[0, 0, 16, 8]) / 16
    assert float(step) == pytest.approx(1.8 / 31 / 2**0.4, rel=5e-3)


def test_upside_down_is_exact(monkeypatch):
    x = smooth(8, 12).contiguous()
    assert torch.equal(augmented(x, monkeypatch, upside=1.0), x.flip(-2))


@settings(max_examples=25, deadline=None)
@given(h=st.integers(2, 9), w=st.integers(2, 9), seed=st.integers(0, 99))
def test_values_stay_within_those_of_the_picture(h, w, seed):
    x = Draw(seed, INDEX[:20]).normal("x", (1, h, w))
    found = AugmentConfig(geometric=1.0)(Batch(INDEX[:20], x), Draw(seed, INDEX[:20])).x
    assert found.isfinite().all()
    assert (found.amax((1, 2, 3)) <= x.amax((1, 2, 3))).all()
    assert (found.amin((1, 2, 3)) >= x.amin((1, 2, 3))).all()


@pytest.mark.parametrize("kind", ["dit", "jit", "pixeldit", "pixnerd", "diffit", "diffit_flat"])
def test_the_network_is_told_and_answers_otherwise(kind):
    config = next(config for config in CONFIGS if config().kind == kind)
    network = Network(toy(config, (8, 12), augment_labels=LABELS))
    x, t, given = asked((8, 12))
    plain = network(x, t, given).value
    assert torch.equal(network(x, t, given._replace(augment=torch.zeros(3, LABELS))).value, plain)
    turned = network(x, t, given._replace(augment=torch.ones(3, LABELS))).value
    assert (turned - plain).abs().amax((1, 2, 3)).min() > 1e-5


def test_what_was_done_in_training_is_shown_to_the_network():
    run = Run.load("debug", "augment.geometric=0.5", "model.augment_labels=9")
    batch = Batch(INDEX[:8], torch.rand(8, 3, 32, 32), label=torch.zeros(8, dtype=torch.long))
    ((_, told),) = shown(run, batch, 8, torch.device("cpu"))
    expected = run.augment(batch, Draw(run.seed, batch.index)).augment
    assert expected.any() and torch.equal(told.augment, expected)


def test_latents_are_not_turned():
    run = Run.load("debug", "augment.geometric=0.1", "model.augment_labels=9", "augment.flip=false")
    spec = replace(run.data.promise(), code=Code(factor=8), bounded=False)
    with pytest.raises(InputError, match="augment.geometric is 0.1, but the latent of a picture"):
        run.check(spec)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("augment.geometric=1.5",), "augment.geometric is 1.5; a probability is in"),
        (("augment.geometric=0.1",), "tells 9; set model.augment_labels=9"),
        (("model.augment_labels=9",), "tells 0; set model.augment_labels=0"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        run = Run.load("debug", *overrides)
        run.check(run.data.promise())
