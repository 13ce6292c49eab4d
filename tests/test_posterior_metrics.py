"""Scores of draws against known answers, a published implementation, and their own symmetries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pointillist.metrics import coverage, crps
from pointillist.metrics.posterior import (
    covered_at,
    crps_at,
    draws_for,
    interval,
    levels_of,
    rank_histogram,
    reliability,
    spread_and_error_at,
    spread_error_ratio,
)
from pointillist.types import InputError

FINITE = st.floats(-1e3, 1e3, width=32)
ENSEMBLES = st.integers(2, 12).flatmap(
    lambda k: st.tuples(arrays(np.float32, (k, 3, 2), elements=FINITE),
                        arrays(np.float32, (3, 2), elements=FINITE))
)  # fmt: skip


def same_distribution(number, places, seed=0):
    """Truth and draws of one normal a place, whose mean and width differ from place to place."""
    make = np.random.default_rng(seed)
    mean, width = make.normal(size=places), make.uniform(0.5, 1.5, places)
    values = mean + width * make.normal(size=(number + 1, places))
    return values[1:], values[0], width


@pytest.mark.parametrize("number", [2, 9, 19, 64])
def test_draws_of_the_truths_own_distribution_are_judged_right(number):
    draws, truth, width = same_distribution(number, 40_000)
    found = reliability(draws, truth)
    assert found.levels == levels_of(number)[::-1] and found.places == 40_000
    for level, observed in zip(found.levels, found.observed, strict=True):
        assert observed == pytest.approx(level, abs=0.01)
        assert coverage(draws, truth, level) == observed
    # The expected CRPS of a normal under its own law is its width over the root of pi; the mean of
    # 40,000 places has a standard error of about 0.004 at K = 2 and 0.003 at K = 64.
    assert crps(draws, truth) == pytest.approx(width.mean() / math.sqrt(math.pi), abs=0.012)
    assert spread_error_ratio(draws, truth) == pytest.approx(1, abs=0.015)
    ranks = np.array(rank_histogram(draws, truth))
    expected = 40_000 / (number + 1)
    chi2 = ((ranks - expected) ** 2 / expected).sum()
    assert len(ranks) == number + 1 and abs(chi2 - number) < 4 * math.sqrt(2 * number)


def test_crps_of_few_draws_expects_what_many_do():
    draws, truth, width = same_distribution(64, 40_000, seed=1)
    draws = draws * 0.5 + 0.2  # and not only where the draws are right
    figures = [crps(draws[:number], truth) for number in (2, 9, 64)]
    assert max(figures) - min(figures) < 0.012
    # Divided by K squared, the pairs of two draws would count half: a bias far above that.
    plain = figures[0] + np.abs(draws[0] - draws[1]).mean() / 4
    assert plain - figures[2] > 0.1


def test_too_narrow_and_too_wide_draws_are_told_apart():
    draws, truth, _ = same_distribution(19, 20_000)
    centre = draws.mean(0)
    narrow, wide = ((draws - centre) * factor + centre for factor in (0.5, 2.0))
    assert spread_error_ratio(narrow, truth) < 0.6 and spread_error_ratio(wide, truth) > 1.8
    assert coverage(narrow, truth, 0.9) < 0.7 and coverage(wide, truth, 0.9) > 0.97
    outside, inside = rank_histogram(narrow, truth), rank_histogram(wide, truth)
    assert outside[0] > 2 * outside[10] and inside[10] > 2 * inside[0]


def test_crps_and_interval_agree_with_scoringrules():
    sr = pytest.importorskip("scoringrules", reason="scoringrules is not installed (extra dev)")
    for number in (2, 5, 19, 64):
        draws, truth, _ = same_distribution(number, 500, seed=number)
        theirs = sr.crps_ensemble(truth, draws.T, estimator="fair", backend="numpy")
        np.testing.assert_allclose(crps_at(draws, truth).numpy(), theirs, rtol=1e-12, atol=1e-12)
        assert crps(draws, truth) == pytest.approx(theirs.mean(), rel=1e-12)
        # The interval score rewards [low, high] by width and misses: the same ends, the same score.
        level = levels_of(number)[0]
        low, high = interval(draws, level)
        missed = 2 / (1 - level) * (np.maximum(low - truth, 0) + np.maximum(truth - high, 0))
        score = sr.interval_score(truth, low, high, 1 - level, backend="numpy")
        np.testing.assert_allclose(high - low + missed, score, rtol=1e-12)


@given(ENSEMBLES)
@settings(max_examples=60, deadline=None)
def test_sorted_form_is_the_sum_over_pairs_and_members_have_no_order(case):
    draws, truth = case
    values, number = draws.astype(np.float64), len(draws)
    pairs = np.abs(values[:, None] - values[None]).sum((0, 1)) / (2 * number * (number - 1))
    plain = np.abs(values - truth).mean(0) - pairs
    np.testing.assert_allclose(crps_at(draws, truth).numpy(), plain, rtol=1e-9, atol=1e-7)
    turned = torch.from_numpy(draws).flip(0).roll(1, 0)
    assert crps(turned, torch.from_numpy(truth)) == pytest.approx(crps(draws, truth), abs=1e-9)
    assert rank_histogram(turned, truth) == pytest.approx(rank_histogram(draws, truth))
    assert reliability(turned, truth) == reliability(draws, truth)
    found = reliability(draws, truth)
    for level, observed in zip(found.levels, found.observed, strict=True):
        assert coverage(draws, truth, level) == pytest.approx(observed)
    assert sum(rank_histogram(draws, truth)) == pytest.approx(truth.size)


@given(arrays(np.float32, (4, 2), elements=FINITE), st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_a_perfect_ensemble_scores_nothing_and_shares_its_ranks(truth, number):
    draws = np.repeat(truth[None], number, 0)
    assert crps(draws, truth) == 0 and coverage(draws, truth, levels_of(number)[0]) == 1
    assert rank_histogram(draws, truth) == pytest.approx([truth.size / (number + 1)] * (number + 1))
    with pytest.raises(InputError, match="equals the truth everywhere"):
        spread_error_ratio(draws, truth)


def test_ties_count_in_equal_fractions():
    draws = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert rank_histogram(draws, np.array([1.0, -1.0])) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


def test_only_hidden_places_of_the_domain_are_judged():
    draws, truth, _ = same_distribution(9, 24)
    draws, truth = draws.reshape(9, 2, 3, 4), truth.reshape(2, 3, 4)
    hidden = np.zeros((2, 1, 4), bool)
    hidden[0, 0, :2] = hidden[1, 0, 3] = True
    spoilt, gaps = draws.copy(), truth.copy()
    spoilt[:, ~np.broadcast_to(hidden, truth.shape)] = 1e6
    gaps[1, 2, 3] = np.nan
    spoilt[:, 1, 2, 3] = np.nan  # land in the draws as well
    inside = np.broadcast_to(hidden, truth.shape) & ~np.isnan(gaps)
    assert reliability(spoilt, gaps, hidden) == reliability(draws[:, inside], truth[inside])
    for judge in (crps, rank_histogram, spread_error_ratio,
                  lambda d, t, *h: coverage(d, t, 0.8, *h)):  # fmt: skip
        assert judge(spoilt, gaps, hidden) == pytest.approx(judge(draws[:, inside], truth[inside]))
    for at in (crps_at(spoilt, gaps, hidden), covered_at(spoilt, gaps, 0.8, hidden),
               *spread_and_error_at(spoilt, gaps, hidden)):  # fmt: skip
        assert (~at.isnan().numpy() == inside).all()


@pytest.mark.parametrize(("level", "number"), [(0.8, 9), (0.9, 19), (0.95, 39), (0.5, 3)])
def test_the_draws_a_level_needs(level, number):
    assert draws_for(level) == number and level in levels_of(number)
    values = torch.randperm(number)[:, None].float()
    low, high = interval(values, level)
    assert (low.item(), high.item()) == (0, number - 1)  # the fewest draws: their ends
    doubled = torch.randperm(2 * number + 1)[:, None].double()
    assert [end.item() for end in interval(doubled, level)] == [1, 2 * number - 1]


@pytest.mark.parametrize(
    ("level", "number", "message"),
    [(0.95, 9, "level is 0.95, but 9 draws can express 0.8, 0.6, 0.4, 0.2 only; take 39 draws"),
     (0.8, 1, "level is 0.8, but 1 draw can express none; take 9 draws"),
     (0.9, 64, "0.969231, .* and 20 lower ones only; take 19 draws"),
     (1.0, 9, "level is 1; it lies between 0 and 1"), (80.0, 9, "level is 80; it lies"),
     (math.nan, 9, "level is nan; it lies"), (0.99999, 9, "0.2 only$")],
)  # fmt: skip
def test_a_level_that_the_draws_cannot_express_is_refused(level, number, message):
    with pytest.raises(InputError, match=message):
        interval(torch.zeros(number, 2), level)


def test_a_level_may_be_copied_from_a_message():
    assert coverage(np.zeros((2, 3)), np.zeros(3), 0.333333) == 1


def test_numpy_and_torch_of_any_layout_say_the_same():
    draws, truth, _ = same_distribution(9, 12)
    backwards = np.ascontiguousarray(draws[:, ::-1])[:, ::-1].astype(">f8")
    figure = crps(draws, truth)
    assert crps(backwards, truth) == crps(torch.from_numpy(draws), truth) == figure
    low, high = interval(draws.astype(np.float32), 0.8)
    assert isinstance(low, np.ndarray) and low.dtype == high.dtype == np.float32
    assert interval(torch.from_numpy(draws).bfloat16(), 0.8)[0].dtype == torch.bfloat16
    gap = interval(np.array([[0.0, np.nan]] * 9), 0.8)
    assert gap[0][0] == 0 and np.isnan(gap[0][1]) and np.isnan(gap[1][1])
    assert crps(np.arange(3.0), np.array(1.0)) == pytest.approx(0)


ONES = np.ones((3, 4))


@pytest.mark.parametrize(
    ("judge", "message"),
    [(lambda: crps(ONES[:1], ONES[0]), "needs 2 draws or more, 1 was given"),
     (lambda: spread_error_ratio(ONES[:1], ONES[0]), "the spread needs 2 draws or more"),
     (lambda: reliability(ONES[:1], ONES[0]), "1 draw can express no level"),
     (lambda: crps(ONES, ONES), "draws have shape .3, 4. and truth .3, 4."),
     (lambda: crps(ONES, ONES[0], np.ones(4)), "hidden is of torch.float64; give booleans"),
     (lambda: crps(ONES, ONES[0], np.ones(3, bool)), "does not broadcast to the truth's"),
     (lambda: crps(ONES, ONES[0], np.zeros(4, bool)), "no place is left to judge"),
     (lambda: crps(ONES, ONES[0] * np.nan), "no place is left to judge"),
     (lambda: crps(ONES * np.inf, ONES[0]), r"not finite at \[0\]"),
     (lambda: crps(ONES, ONES[0] * np.inf), r"not finite at \[0\]")],
)  # fmt: skip
def test_what_cannot_be_judged_is_one_sentence(judge, message):
    with pytest.raises(InputError, match=message) as caught:
        judge()
    assert "\n" not in str(caught.value)
