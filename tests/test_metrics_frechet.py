"""The Frechet distance against closed forms, and moments that come batch by batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.metrics import Moments, MomentSum, frechet_distance, frechet_score
from pointillist.metrics.moments import as_features
from pointillist.types import InputError


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d, seed):
    half = normal(d, d, seed)
    return half @ half.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def gaussian(mean, cov, n=1000):
    return Moments(n, torch.as_tensor(mean).double(), torch.as_tensor(cov).double())


@given(st.integers(0, 10**6), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_two_dimensions_have_a_closed_form(seed, scale):
    """For 2 x 2, tr (AB)^(1/2) is the root of tr AB + 2 root of det AB."""
    a, b = scale * covariance(2, seed), covariance(2, seed + 1)
    mean = normal(2, 2, seed + 2)
    product = a @ b
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    expected = float((mean[0] - mean[1]).square().sum() + a.trace() + b.trace()) - 2 * root
    found = frechet_distance(gaussian(mean[0], a), gaussian(mean[1], b))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_covariances_that_commute_differ_by_their_roots():
    turn, _ = torch.linalg.qr(normal(7, 7))
    wide, narrow = torch.arange(1.0, 8).double() ** 2, torch.arange(7.0, 0, -1).double() ** 2
    a, b = turn @ wide.diag() @ turn.T, turn @ narrow.diag() @ turn.T
    shift = normal(1, 7, 3)[0]
    expected = float(shift.square().sum() + (wide.sqrt() - narrow.sqrt()).square().sum())
    found = frechet_distance(gaussian(torch.zeros(7), a), gaussian(shift, b))
    assert found == pytest.approx(expected, rel=1e-12)


def test_wide_covariances_agree_with_the_eigenvalues_of_their_product():
    a, b = covariance(64, 0), covariance(64, 1)
    roots = np.sqrt(np.linalg.eigvals((a @ b).numpy()).real).sum()
    expected = float(a.trace() + b.trace()) - 2 * roots
    zero = torch.zeros(64)
    assert frechet_distance(gaussian(zero, a), gaussian(zero, b)) == pytest.approx(expected)


def test_a_set_has_no_distance_to_itself_and_the_order_of_two_does_not_count():
    a, b = normal(80, 12), 2 * normal(50, 12, 1) + 1
    assert frechet_distance(a, a) < 1e-10 * float(a.square().sum(1).mean())
    assert frechet_distance(a, a.flip(0)) < 1e-10
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    # Nor do the axes of the features.
    turn, _ = torch.linalg.qr(normal(12, 12, 2))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_features_arrays_and_kept_moments_say_the_same():
    a, b = normal(60, 8).float(), normal(70, 8, 1).float() + 0.3
    figure = frechet_distance(a, b)
    assert frechet_distance(a.numpy(), b.numpy()) == figure
    assert frechet_distance(Moments.of(a), b) == frechet_distance(a, Moments.of(b)) == figure


def test_fewer_pictures_than_features_are_refused():
    a, b = normal(60, 8), normal(8, 8, 1)
    with pytest.raises(InputError, match="b has 8 pictures.* 8 features needs 9 or more; give more "
                                         "pictures, or ask for the kernel distance"):  # fmt: skip
        frechet_distance(a, b)
    with pytest.raises(InputError, match="a has 8 pictures"):
        frechet_distance(Moments.of(b), a)
    assert frechet_distance(a, normal(9, 8, 1)) > 0


def test_without_full_rank_the_value_is_that_of_the_directions_that_are_filled():
    """Two sets in one plane of many dimensions, where a product's root is rounding alone."""
    a, b = normal(30, 3), 1.5 * normal(20, 3, 1) + 1
    plane, _ = torch.linalg.qr(normal(100, 100, 2))
    wide = [frechet_distance(x @ plane[:3], y @ plane[:3], rank_deficient=True)
            for x, y in ((a, b), (b, a))]  # fmt: skip
    assert wide == pytest.approx([frechet_distance(a, b)] * 2, rel=1e-9)
    # Across different planes nothing overlaps: both spreads are left whole.
    apart = frechet_distance(a @ plane[:3], b @ plane[3:6], rank_deficient=True)
    spread = float(Moments.of(a).cov.trace() + Moments.of(b).cov.trace())
    centres = float(a.mean(0).square().sum() + b.mean(0).square().sum())
    assert apart == pytest.approx(spread + centres, rel=1e-9)


@pytest.mark.parametrize("against", ["fixed", "features"])
def test_the_interval_covers_the_distance_expected_at_this_n(against):
    """At 90 %, over 150 sets whose distance is not near its least."""
    n, d, level = 120, 3, 0.9
    fixed = gaussian([0.4, 0.0, -0.3], [[1.5, 0.3, 0], [0.3, 1, 0], [0, 0, 0.5]])
    scale = torch.linalg.cholesky(fixed.cov)

    def rival(seed):
        return fixed if against == "fixed" else normal(n, d, seed + 10**6) @ scale.T + fixed.mean

    expected = np.mean([frechet_distance(normal(n, d, s), rival(s)) for s in range(3000, 4500)])
    scores = [frechet_score(normal(n, d, s), rival(s), level=level, replicates=200, seed=s)
              for s in range(150)]  # fmt: skip
    inside = np.mean([score.low <= expected <= score.high for score in scores])
    assert abs(inside - level) < 0.07  # the standard error of 150 is 0.024
    assert all(score.low <= score.value <= score.high and score.n == n for score in scores)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(-1e6, 1e6))
@settings(max_examples=40, deadline=None)
def test_moments_of_batches_are_those_of_all_at_once(sizes, offset):
    sizes = [2, *sizes]
    x = normal(sum(sizes), 5, sum(sizes)) + offset
    gathered = MomentSum()
    for part in x.split(sizes):
        gathered.add(part)
        gathered.add(part[:0])  # an empty batch changes nothing
    found, plain = gathered.moments(), x.numpy()
    assert found.n == len(x)
    np.testing.assert_allclose(found.mean.numpy(), plain.mean(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.cov.numpy(), np.cov(plain.T), rtol=1e-6, atol=1e-9)


def test_moments_far_from_zero_keep_their_digits():
    """A sum of squares would lose all of them: 1e8 squared has 16 digits before the unit."""
    x = normal(4000, 2)
    gathered = MomentSum()
    for part in (x + 1e8).split(37):
        gathered.add(part)
    torch.testing.assert_close(gathered.moments().cov, Moments.of(x).cov, rtol=1e-6, atol=1e-6)


def test_sets_that_no_score_can_be_made_from_are_refused():
    good = normal(30, 4)
    spoilt = good.clone()
    spoilt[3, 1] = math.nan
    cases = [
        (good[:1], "a has 1 rows; a set has 2 pictures or more"),
        (good[:, 0], r"a has shape \(30,\); features are one row a picture"),
        (spoilt, "a: row 3 holds NaN or infinity, and 1 of 30 rows do"),
        (good[:1].expand(9, 4), "all 9 rows are equal; a set of one picture repeated"),
    ]
    for values, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            as_features(values, "a")
        assert "\n" not in str(caught.value)


def test_moments_that_mean_nothing_are_refused():
    good, gathered = normal(30, 4), MomentSum()
    with pytest.raises(InputError, match="0 features have no covariance; 2 are the least"):
        gathered.moments()
    for _ in range(3):
        gathered.add(good[:1])
    with pytest.raises(InputError, match="all 3 pictures have the same features"):
        gathered.moments()
    with pytest.raises(InputError, match="features 3 to 32: row 1 holds NaN"):
        gathered.add(torch.where(torch.arange(30)[:, None] == 1, math.inf, good))
    with pytest.raises(InputError, match="4 and 3 features a picture; take both from one"):
        gathered.add(good[:, :3])
    with pytest.raises(InputError, match="4 and 3 features a picture; take both from one"):
        frechet_distance(good, good[:, :3])
    broken = Moments.of(good)._replace(cov=torch.full((4, 4), math.nan))
    with pytest.raises(InputError, match="moments of b hold NaN or infinity; make them again"):
        frechet_distance(good, broken)
