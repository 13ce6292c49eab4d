"""PSNR and SSIM against values worked out by hand, and the formula window by window."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.metrics import lpips, psnr, ssim
from pointillist.types import InputError


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_of_known_differences():
    x = pictures(3, 3, 8, 8) * 2 - 1
    shift = torch.tensor([0.5, 0.02, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    expected = [20 * math.log10(2 / d) for d in (0.5, 0.02, 2.0)]  # 12.04, 40 and 0 dB
    assert psnr(x, x + shift, data_range=2.0).tolist() == pytest.approx(expected, abs=1e-9)
    assert psnr(x, x, data_range=2.0).tolist() == [math.inf] * 3
    black, white = (np.full((1, 3, 4, 4), v, np.uint8) for v in (0, 255))
    assert psnr(black, white).item() == 0  # 8-bit differences do not wrap around
    assert psnr(black, black + 1).item() == pytest.approx(48.1308036)
    # In another unit the figure is the same, if the range is told in it.
    y = x + 0.1 * pictures(3, 3, 8, 8, seed=1)
    assert psnr(100 * x, 100 * y, data_range=200.0).tolist() == pytest.approx(
        psnr(y, x, data_range=2.0).tolist()
    )


def test_psnr_counts_only_places_of_the_mask():
    x, y = pictures(2, 3, 6, 5), pictures(2, 3, 6, 5, seed=1)
    mask = pictures(2, 1, 6, 5, seed=2) > 0.6
    found = psnr(x, y, data_range=1.0, mask=mask)
    for i in range(2):
        square = (x[i] - y[i]).square()[:, mask[i, 0]].mean()
        assert found[i].item() == pytest.approx(-10 * math.log10(square))
    whole = torch.ones(2, 1, 6, 5, dtype=torch.bool)
    assert torch.equal(psnr(x, y, data_range=1.0, mask=whole), psnr(x, y, data_range=1.0))


def by_window(x, y, weight, c1, c2):
    """SSIM of one channel, Eq. 13 of the paper in every window."""
    w, rows = len(weight), []
    for i in range(x.shape[0] - w + 1):
        for j in range(x.shape[1] - w + 1):
            a, b = x[i : i + w, j : j + w], y[i : i + w, j : j + w]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
            cov = (weight * (a - ma) * (b - mb)).sum()
            rows.append((2 * ma * mb + c1) * (2 * cov + c2)
                        / ((ma**2 + mb**2 + c1) * (va + vb + c2)))  # fmt: skip
    return np.mean(rows)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_is_the_papers_formula_in_every_window(window):
    x = pictures(2, 2, 13, 12)
    y = (x + 0.3 * pictures(2, 2, 13, 12, seed=1)).clamp(max=1)
    width = {"gaussian": 11, "uniform": 7}[window]
    line = np.exp(-((np.arange(width) - width // 2) ** 2) / (2 * 1.5**2))
    line = line if window == "gaussian" else np.ones(width)
    weight = np.outer(line, line) / line.sum() ** 2
    found = ssim(x, y, data_range=1.0, window=window)
    for i in range(2):
        channels = [by_window(a, b, weight, 0.01**2, 0.03**2)
                    for a, b in zip(x[i].numpy(), y[i].numpy(), strict=True)]  # fmt: skip
        assert found[i].item() == pytest.approx(np.mean(channels), rel=1e-9)


def test_ssim_of_constant_pictures_compares_their_brightness_alone():
    a, b, c1 = 0.3, 0.8, 0.01**2
    x, y = torch.full((1, 1, 11, 11), a), torch.full((1, 1, 11, 11), b)
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert ssim(x, y, data_range=1.0).item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 10**6), st.sampled_from(["gaussian", "uniform"]), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_ssim_is_one_for_equals_below_for_others_and_has_no_order(seed, window, axes):
    shape = (2, 3, *(12, 11, 11)[:axes])  # fields on a line, a plane, in space
    x, y = pictures(*shape, seed=seed), pictures(*shape, seed=seed + 1)
    for sample in (False, True):
        options = {"data_range": 1.0, "window": window, "sample_covariance": sample}
        assert ssim(x, x, **options).tolist() == pytest.approx([1, 1])
        found = ssim(x, y, **options)
        assert bool((found.abs() < 1).all())
        assert ssim(y, x, **options).tolist() == pytest.approx(found.tolist())
        # A picture's figure is its own, whatever else is in the batch.
        assert ssim(x[1:], y[1:], **options).item() == pytest.approx(found[1].item())


def test_inverted_contrast_has_the_opposite_structure():
    """Brightness equal, covariance minus the variance: -1 up to the two constants."""
    stripes = torch.arange(16).remainder(2).double().expand(1, 1, 16, 16)
    assert ssim(stripes, 1 - stripes, data_range=1.0).item() == pytest.approx(-1, abs=0.01)


LEVELS = torch.linspace(0, 255, 864).view(2, 3, 12, 12)
X, BYTES = torch.zeros(2, 3, 12, 12), torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
NOWHERE = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 12, 12)


@pytest.mark.parametrize("judge", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [(X, X[:1], {"data_range": 2.0}, r"shapes \(2, 3, 12, 12\) and \(1, 3, 12, 12\); give as many"),
     (X, X[..., :9], {"data_range": 2.0}, "of the same size on both sides"),
     (X[0, 0], X[0, 0], {"data_range": 2.0}, r"shape \(12, 12\); give one or more as"),
     (X[:0], X[:0], {"data_range": 2.0}, r"shape \(0, 3, 12, 12\); give one or more as"),
     (X, X, {}, "data_range is not stated; .* 2 for"),
     (BYTES, X, {}, "data_range is not stated"),
     (X, X, {"data_range": 0.0}, "data_range 0.0 is not above 0"),
     (X, X, {"data_range": math.nan}, "data_range nan is not above 0"),
     (BYTES, X, {"data_range": 255.0}, "one side has 8-bit levels and the other has not"),
     (LEVELS, LEVELS, {"data_range": 2.0}, "data_range is 2, but values .* 255 apart; state"),
     (X, X * math.nan, {"data_range": 2.0}, "a picture holds NaN or infinity")],
)  # fmt: skip
def test_pictures_that_do_not_belong_together_are_one_sentence(judge, a, b, options, message):
    with pytest.raises(InputError, match=message) as caught:
        judge(a, b, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda: lpips(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), data_range=1.0),
      "LPIPS got values beyond 0.5 on either side of 0; shift"),
     (lambda: lpips(BYTES[:, :1], BYTES[:, :1]), "LPIPS got pictures of shape"),
     (lambda: psnr(BYTES, BYTES, mask=NOWHERE), "picture 1 has no place where mask is true"),
     (lambda: psnr(BYTES, BYTES, mask=NOWHERE[..., :5]), r"mask has shape \(2, 1, 12, 5\)"),
     (lambda: ssim(BYTES, BYTES, width=4), "width 4 of the window is not an odd number from 3 on"),
     (lambda: ssim(BYTES, BYTES, width=13), "12x12 have no room for a window of 13"),
     (lambda: ssim(BYTES[..., :6], BYTES[..., :6]), "12x6 have no room for a window of 11")],
)  # fmt: skip
def test_a_mask_or_window_that_does_not_fit_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_lpips_reads_levels_and_states_alike():
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    other = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    states = (levels / 127.5 - 1, other / 127.5 - 1)
    found = lpips(levels, other)
    torch.testing.assert_close(found, lpips(*states, data_range=2.0), rtol=1e-5, atol=1e-6)
    assert (found > 0.05).all() and not lpips(levels, levels).any()
