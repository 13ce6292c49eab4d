"""Terms of the loss beside the squared errors: frequency, LPIPS, and what is refused."""

import importlib
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw
from pointillist.losses import LossConfig, criterion, mean_square
from pointillist.losses.align import AlignConfig
from pointillist.losses.frequency import (
    FrequencyConfig,
    block_dct,
    dct_matrix,
    frequency,
    jpeg_weights,
    to_ycbcr,
)  # fmt: skip
from pointillist.losses.perceptual import LPIPSConfig, perceptual
from pointillist.objective import StraightConfig
from pointillist.run import Run
from pointillist.types import Estimate, InputError, Spec, grid_axes

# The package names its function so, which hides the file.
frequencies = importlib.import_module("pointillist.losses.frequency")


def pictures(b: int, h: int, w: int, c: int = 3, seed: int = 5) -> torch.Tensor:
    return Draw(seed, torch.arange(b)).normal("pictures", (c, h, w)).clamp(-1, 1)


# Frequency.


def test_the_dct_is_orthonormal_and_starts_with_the_mean():
    matrix = dct_matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))
    flat = block_dct(torch.full((1, 1, 8, 16), 0.5))
    assert flat[0, 0, 0, 0] == pytest.approx(4) and flat[0, 0, 0, 8] == pytest.approx(4)
    assert flat.abs().sum() == pytest.approx(8, abs=1e-5)


def test_a_cosine_has_one_coefficient():
    n = torch.arange(8) + 0.5
    wave = torch.cos(3 * n * torch.pi / 8)[:, None] * torch.cos(5 * n * torch.pi / 8)
    found = block_dct(wave[None, None])[0, 0]
    assert found[3, 5] == pytest.approx(4, abs=1e-5)
    found[3, 5] = 0
    assert found.abs().max() < 1e-5


def test_what_is_constant_along_one_axis_has_no_frequency_along_it():
    """PixelHDM multiplies by C on both sides, which leaves the columns without frequencies."""
    rows = torch.linspace(-1, 1, 8)[:, None].expand(8, 8)[None, None]
    found = block_dct(rows)[0, 0]
    assert found[:, 1:].abs().max() < 1e-6 < found[1, 0].abs()
    matrix = dct_matrix().float()
    published = matrix @ rows[0, 0] @ matrix
    assert published[:, 1:].abs().max() > 1


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_blocks_keep_the_sum_of_squares(rows, columns, seed):
    x = pictures(2, 8 * rows, 8 * columns, 2, seed)
    kept = block_dct(x).square().sum((1, 2, 3))
    torch.testing.assert_close(kept, x.square().sum((1, 2, 3)))


def test_flat_weights_give_the_mean_square_of_brightness_and_colour(monkeypatch):
    """At quality 100 every step is 1, so every frequency counts alike; RGB's square it is not."""
    error = pictures(2, 16, 24)
    found = frequency(FrequencyConfig(weight=1.0, quality=100), error)
    torch.testing.assert_close(found, mean_square(to_ycbcr(error), None))
    assert not torch.allclose(found, mean_square(error, None), rtol=0.1)
    plain = FrequencyConfig(weight=1.0, quality=100, colour="none")
    weight = pictures(2, 16, 24, 1).abs()
    torch.testing.assert_close(frequency(plain, error, weight), mean_square(error, weight))


def test_low_frequencies_count_most_and_a_lower_quality_sharpens_that():
    for quality in (30, 50, 85, 95):
        for table in jpeg_weights(quality):
            assert table.mean() == pytest.approx(1) and table.argmax() // 8 <= 1
    ratio = [float(t[0, 0] / t[7, 7]) for t in (jpeg_weights(q)[0] for q in (98, 85, 50))]
    assert ratio == sorted(ratio) and ratio[2] == pytest.approx(99 / 16)


def test_equal_pictures_have_no_error_at_any_frequency_and_gradients_are_finite():
    x = pictures(2, 13, 18).requires_grad_()
    assert not frequency(FrequencyConfig(weight=1.0), x - x.detach()).any()
    frequency(FrequencyConfig(weight=1.0), x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().min() > 0


# The sum.


def pair(x: torch.Tensor, eps: torch.Tensor) -> Estimate:
    return Estimate(x, eps)


def test_every_term_is_logged_by_name_and_weighed_in_the_sum():
    clean, eps, guess = (pictures(3, 32, 40, seed=s) for s in (1, 2, 3))
    config = LossConfig(
        velocity=1.0, x=0.5, frequency=FrequencyConfig(weight=2.0), lpips=LPIPSConfig(weight=0.25),
        align=AlignConfig(weight=0.5),
    )  # fmt: skip
    t, aligned = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1.0, 0.5, 0.2])
    total, terms = criterion(config, pair(guess, eps), pair(clean, eps), t=t, aligned=aligned)
    assert list(terms) == ["velocity", "x", "frequency", "lpips", "align"]
    assert all(term.shape == (3,) and (term > 0).all() for term in terms.values())
    weights = {"velocity": 1.0, "x": 0.5, "frequency": 2.0, "lpips": 0.25, "align": 0.5}
    torch.testing.assert_close(total, sum(weights[name] * term for name, term in terms.items()))


def test_lpips_counts_from_its_time_on_and_not_for_equal_pictures():
    clean, guess = pictures(3, 32, 32, seed=1), pictures(3, 32, 32, seed=2)
    t = torch.tensor([0.29, 0.3, 0.9])

    def term(guess: torch.Tensor, after: float) -> torch.Tensor:
        config = LossConfig(lpips=LPIPSConfig(weight=1.0, after=after))
        estimates = pair(guess, clean), pair(clean, clean)
        return criterion(config, *estimates, t=t)[1]["lpips"]

    always, gated = term(guess, 0.0), term(guess, 0.3)
    assert always.all() and not gated[0] and torch.equal(gated[1:], always[1:])
    assert not term(clean, 0.0).any()


@pytest.mark.parametrize("predict", ["x", "velocity", "eps"])
def test_a_perfect_network_has_no_loss_in_any_term_at_any_time(predict):
    """The clamp moves the picture of guess and truth alike, at t = 0 and where eps is predicted."""
    x, eps = pictures(5, 32, 40, seed=1), pictures(5, 32, 40, seed=2)
    t = torch.tensor([0.0, 0.02, 0.5, 0.98, 1.0])
    objective = StraightConfig(predict=predict)
    xt = objective.mix(x, eps, t)
    guess = objective.read(objective.answer(pair(x, eps), t), xt, t)
    config = LossConfig(
        x=1.0, eps=1.0, frequency=FrequencyConfig(weight=1.0), lpips=LPIPSConfig(weight=1.0)
    )
    total, terms = criterion(config, guess, objective.target(x, eps, xt, t), t=t)
    assert list(terms) == ["velocity", "x", "eps", "frequency", "lpips"]
    assert not total.any() and not any(term.any() for term in terms.values())


def test_nothing_comes_of_a_guess_before_the_gate_though_it_is_not_finite():
    guess = pictures(2, 32, 32, seed=2)
    guess[0, 0, 3, 3] = torch.nan
    guess.requires_grad_()
    t = torch.tensor([0.1, 0.9])
    found = perceptual(LPIPSConfig(weight=1.0, after=0.3), guess, pictures(2, 32, 32), t)
    found.sum().backward()
    assert found[0] == 0 and found[1] > 0
    assert guess.grad is not None and not guess.grad[0].any() and guess.grad[1].any()


def test_what_weighs_frequencies_is_made_once_and_does_not_depend_on_the_default_device(
    monkeypatch,
):
    for name in ("_matrix_on", "_ycbcr_on", "_weights_on", "jpeg_weights"):
        getattr(frequencies, name).cache_clear()
    config, error = FrequencyConfig(weight=1.0, quality=84), pictures(2, 16, 20)
    with torch.device("meta"):
        found = frequency(config, error)
    rows, tables = dct_matrix().float(), jpeg_weights(84)
    padded = torch.nn.functional.pad(to_ycbcr(error), (0, 4, 0, 0), mode="reflect")
    expected = torch.zeros(2)
    for i in range(0, 16, 8):
        for j in range(0, 24, 8):
            block = rows @ padded[:, :, i : i + 8, j : j + 8] @ rows.T
            table = torch.stack([tables[0], tables[1], tables[1]])
            kept = min(8, 20 - j)
            expected += (block.square() * table)[..., :kept].sum((1, 2, 3))
    torch.testing.assert_close(found, expected / (3 * 16 * 20))
    monkeypatch.setattr(frequencies, "dct_matrix", None)
    monkeypatch.setattr(frequencies, "jpeg_weights", None)
    assert torch.equal(frequency(config, error), found)


# What is refused.

BAD = {
    "loss.align.weight=-1": "loss.align.weight is -1.0; a weight is 0 or more",
    "loss.frequency.weight=-0.5": "loss.frequency.weight is -0.5; a weight is 0 or more",
    "loss.lpips.weight=-2": "loss.lpips.weight is -2.0; a weight is 0 or more",
    "loss.align.block=2": "loss.align.block is 2, but loss.align.weight is 0, so nothing comes",
    "loss.lpips.after=0.3": "loss.lpips.after is 0.3, but loss.lpips.weight is 0",
    "loss.frequency.quality=90": "loss.frequency.quality is 90, but loss.frequency.weight is 0",
    "loss.frequency={weight: 1, quality: 0}": "loss.frequency.quality is 0; it lies in .1, 100.",
    "loss.frequency={weight: 1, quality: 101}": "loss.frequency.quality is 101",
    "loss.lpips={weight: 1, after: 1}": "loss.lpips.after is 1.0; it lies in .0, 1.",
    "loss.align={weight: 1, block: 0}": "loss.align.block is 0; it must be 1 or more",
    "loss.align={weight: 1, kernel: 2}": "loss.align.kernel is 2; it must be odd",
    "loss.align={weight: 1, normalise: 1.5}": "loss.align.normalise is 1.5; it lies in .0, 1.",
    "loss.align={weight: 1, stop_after: -1}": "loss.align.stop_after is -1; it must be 0 or more",
    "loss.align={weight: 1, hidden: 64}": "loss.align.hidden is 64, but .* is conv, which has none",
    "loss.align={weight: 1, projector: mlp, kernel: 5}": "kernel is 5, but .* is mlp",
    "loss.align={weight: 1, projector: linear}": "loss.align.projector is 'linear'",
    "loss.velocity=0": "loss.frequency.weight are all 0, so nothing would be learnt; set one of",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_field_is_refused_in_one_sentence(text):
    with pytest.raises(InputError, match=BAD[text]) as caught:
        Run.load("debug", text)
    assert "\n" not in str(caught.value)


def test_what_looks_at_features_alone_is_refused_with_the_reason():
    for fields, alone in (
        (("loss.lpips.weight=1",), "loss.lpips alone"),
        (("loss.lpips.weight=1", "loss.align.weight=1"), "loss.lpips and loss.align alone"),
    ):
        with pytest.raises(InputError, match=f"are all 0, and {alone} cannot tell pixels what"):
            Run.load("debug", "loss.velocity=0", *fields)


def test_a_remedy_is_no_cause_of_the_next_refusal():
    frequency = ("loss.frequency.weight=1", "loss.frequency.quality=90")
    for fields, channels, remedy in (
        (frequency, 1, "loss.frequency.colour=none"),
        (frequency, 3, "loss.frequency={}"),
        (("loss.lpips={weight: 1, after: 0.3}",), 1, "loss.lpips={}"),
        (("loss.align={weight: 1, block: 2}",), 1, "loss.align={}"),
    ):
        size = (4, 32) if channels == 3 else (32, 32)
        spec = Spec(channels=channels, axes=grid_axes(size), classes=("a",))
        with pytest.raises(InputError, match=re.escape(f"; set {remedy}")):
            Run.load("debug", *fields).check(spec)
        Run.load("debug", *fields, remedy).check(spec)


def test_the_frequencies_alone_can_be_learnt_from():
    assert Run.load("debug", "loss.velocity=0", "loss.frequency.weight=1").loss.velocity == 0


@pytest.mark.parametrize(
    ("text", "size", "channels", "told"),
    [
        ("loss.align.weight=1", (32, 32), 4, "have 4 channels, and a teacher looks at 3"),
        ("loss.lpips.weight=1", (32, 32), 1, "have 1 channels, and LPIPS looks at 3"),
        ("loss.lpips.weight=1", (30, 64), 3, "31x31 or more and these have 30x64"),
        ("loss.frequency.weight=1", (32, 32), 1, "1 channels, and colour ycbcr looks at 3"),
        ("loss.frequency.weight=1", (4, 32), 3, "pictures of 4x32 are too small"),
        ("loss.align.weight=1", (8, 8, 8), 3, "3 axes, and a teacher looks at pictures"),
        ("loss.frequency={weight: 1, colour: none}", (32,), 3, "1 axes, and colour none looks at"),
    ],
)
def test_data_that_a_term_cannot_look_at_are_refused(text, size, channels, told):
    run = Run.load("debug", text)
    with pytest.raises(InputError, match=told):
        run.check(Spec(channels=channels, axes=grid_axes(size)))


def test_any_number_of_channels_has_frequencies_as_they_are():
    run = Run.load("debug", "loss.frequency={weight: 1, colour: none}")
    run.check(Spec(channels=5, axes=grid_axes((5, 64)), classes=("a",)))
    assert frequency(run.loss.frequency, pictures(2, 5, 64, 5)).shape == (2,)
