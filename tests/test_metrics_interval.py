"""Intervals: how often they hold what they are to hold, and what they are made of."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.metrics import bootstrap, bootstrap_mean, over_seeds
from pointillist.metrics.interval import counts, percentiles, resamples, t_quantile
from pointillist.types import InputError


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_a_bootstrap_interval_covers_the_mean_at_its_level(level):
    make = np.random.default_rng(0)
    scores = [bootstrap_mean(make.normal(3, 2, 80).tolist(), level=level, replicates=200, seed=s)
              for s in range(400)]  # fmt: skip
    inside = np.mean([score.low <= 3 <= score.high for score in scores])
    assert abs(inside - level) < 0.07  # the standard error of 400 is 0.025 at most
    # Its width is that of the normal interval: twice z sigma over the root of n.
    z = {0.5: 0.6745, 0.9: 1.6449}[level]
    width = np.mean([score.high - score.low for score in scores])
    assert width == pytest.approx(2 * z * 2 / math.sqrt(80), rel=0.05)


@pytest.mark.parametrize("runs", [2, 3, 6])
def test_an_interval_over_seeds_covers_the_mean_at_its_level(runs):
    values = np.random.default_rng(1).normal(-1, 0.3, (2000, runs))
    scores = [over_seeds(row.tolist(), level=0.9) for row in values]
    inside = np.mean([score.low <= -1 <= score.high for score in scores])
    assert abs(inside - 0.9) < 0.025 and scores[0].n == runs


@pytest.mark.parametrize(
    ("p", "freedom", "quantile"),
    [(0.975, 1, 12.7062047), (0.975, 2, 4.30265273), (0.95, 3, 2.35336343), (0.975, 4, 2.77644511),
     (0.975, 10, 2.22813885), (0.995, 29, 2.75638590), (0.975, 1000, 1.96233908)],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_tables(p, freedom, quantile):
    assert t_quantile(p, freedom) == pytest.approx(quantile, rel=1e-7)


@given(st.integers(2, 40), st.integers(1, 30), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_every_replicate_draws_as_many_samples_as_there_are(n, replicates, seed):
    drawn = torch.cat(list(resamples(n, replicates, seed)))
    often = counts(n, replicates, seed)
    assert drawn.shape == often.shape == (replicates, n)
    assert 0 <= int(drawn.min()) and int(drawn.max()) < n
    assert bool((often.sum(1) == n).all())
    for row, numbers in zip(often, drawn, strict=True):
        assert torch.equal(row, torch.bincount(numbers, minlength=n).double())


def test_replicates_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    whole = counts(7, 20, 3)
    monkeypatch.setattr("pointillist.metrics.interval.CHUNK", 30)
    assert torch.equal(counts(7, 20, 3), whole) and torch.equal(counts(7, 9, 3), whole[:9])
    assert not torch.equal(counts(7, 20, 4), whole)


def test_any_statistic_is_made_again_from_the_chosen_samples():
    x = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    again = bootstrap(lambda rows: float(x[rows].mean()), 40, level=0.8, replicates=300, seed=5)
    plain = bootstrap_mean(x, level=0.8, replicates=300, seed=5)
    assert again == pytest.approx(plain) and again.n == 40
    assert again.low < again.value < again.high and again.value == float(x.mean())
    middle = bootstrap(lambda rows: float(x[rows].median()), 40)
    assert middle.low <= middle.value <= middle.high


def test_percentiles_leave_as_much_out_on_both_sides():
    assert percentiles([float(i) for i in range(101)], 0.8) == pytest.approx((10, 90))


@pytest.mark.parametrize(
    ("judge", "message"),
    [(lambda: bootstrap_mean([1.0]), "a bootstrap of 1 samples and 1000 replicates draws nothing"),
     (lambda: bootstrap_mean([1.0, 2.0], replicates=0), "0 replicates draws nothing"),
     (lambda: bootstrap_mean([1.0, math.inf]), "sample 1 is inf.*equal pictures have infinite"),
     (lambda: bootstrap_mean([1.0, 2.0], level=95.0), "level 95.0 is not between 0 and 1"),
     (lambda: over_seeds([1.0]), "1 seed gives no interval; run 2 or more"),
     (lambda: over_seeds([1.0, math.nan]), "not finite, but find why"),
     (lambda: over_seeds([1.0, 2.0], level=0.0), "level 0.0 is not between 0 and 1")],
)  # fmt: skip
def test_what_has_no_interval_is_one_sentence(judge, message):
    with pytest.raises(InputError, match=message) as caught:
        judge()
    assert "\n" not in str(caught.value)
