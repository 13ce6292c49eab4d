"""The kernel distance and nearest neighbours against their sums written out, pair by pair."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.metrics import (
    kernel,
    kernel_distance,
    kernel_score,
    neighbours,
    precision_recall,
    subset_distances,
)
from pointillist.metrics.interval import counts
from pointillist.types import InputError


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def cubic(x, y):
    return (x @ y / len(x) + 1) ** 3


def pair_by_pair(x, y, of_x=None, of_y=None):
    """The unbiased estimate of all pairs of different samples; `of_x` numbers the samples."""
    of_x = range(len(x)) if of_x is None else of_x
    of_y = range(len(y)) if of_y is None else of_y

    def within(z, numbers):
        return np.mean([cubic(z[i], z[j]) for i in numbers for j in numbers if i != j])

    across = np.mean([cubic(x[i], y[j]) for i in of_x for j in of_y])
    return within(x, of_x) + within(y, of_y) - 2 * across


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_distance_is_the_sum_over_pairs_whatever_the_numbers(n, m, d, seed):
    x, y = normal(n, d, seed), 2 * normal(m, d, seed + 1) + 0.5
    expected = pair_by_pair(x, y)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert kernel_distance(torch.tensor(y), torch.tensor(x)) == pytest.approx(
        kernel_distance(x, y), rel=1e-9, abs=1e-9
    )
    assert kernel_distance(x[::-1].copy(), y) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_two_sets_of_one_distribution_are_apart_by_nothing_on_average():
    """With a sample's pair with itself counted, ten samples would show a bias of 1.5 or so."""
    found = np.array([kernel_distance(normal(10, 4, 2 * s), normal(12, 4, 2 * s + 1))
                      for s in range(800)])  # fmt: skip
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 3.5 * error < 0.2
    assert (found < 0).mean() > 0.3


@pytest.mark.parametrize("n", [4, 40])
def test_the_distance_does_not_depend_on_n_on_average(n):
    """For x ~ N(0, 1) and y ~ N(a, 1) in one dimension the sums of moments are closed forms."""
    a = 0.7
    # E (x x' + 1)^3 is the sum over k of C(3, k) m_k m'_k, with the moments m_k of each.
    zero, moved = (1, 0, 1, 0), (1, a, 1 + a**2, a**3 + 3 * a)
    expected = sum(c * (p - q) ** 2 for c, p, q in zip((1, 3, 3, 1), zero, moved, strict=True))
    found = np.array([kernel_distance(normal(n, 1, 2 * s), normal(n, 1, 2 * s + 1) + a)
                      for s in range(500)])  # fmt: skip
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(len(found)))


def test_subsets_are_drawn_without_repeats_and_by_their_number():
    x, y = normal(30, 5), normal(20, 5, 1) + 0.2
    few = subset_distances(x, y, subset_size=8, subsets=5, seed=3)
    more = subset_distances(x, y, subset_size=8, subsets=9, seed=3)
    assert torch.equal(few, more[:5]) and few.unique().numel() == 5
    assert not torch.equal(few, subset_distances(x, y, subset_size=8, subsets=5, seed=4))
    assert kernel_distance(x, y, subset_size=8, subsets=5, seed=3) == float(few.mean())
    # A subset of all is all, in another order.
    whole = subset_distances(x[:20], y, subset_size=20, subsets=3)
    assert whole.tolist() == pytest.approx([kernel_distance(x[:20], y)] * 3, rel=1e-9)
    chosen = [(torch.tensor([0, 4, 7]), torch.tensor([1, 2, 9, 3]))]
    expected = pair_by_pair(x[[0, 4, 7]], y[[1, 2, 9, 3]])
    assert kernel_distance(x, y, picks=chosen) == pytest.approx(expected, rel=1e-9)


def test_a_sample_drawn_twice_is_no_pair_with_itself():
    x, y = normal(7, 3), normal(6, 3, 1) + 0.4
    rows, columns = counts(7, 4, 0), counts(6, 4, 1)
    found = kernel.discrepancies(*map(torch.tensor, (x, y)), rows, columns)
    for value, row, column in zip(found, rows, columns, strict=True):
        drawn = [np.repeat(np.arange(len(w)), w.int().numpy()) for w in (row, column)]
        assert float(value) == pytest.approx(pair_by_pair(x, y, *drawn), rel=1e-9)


def test_the_interval_covers_the_distance_of_the_distributions():
    """At 90 %, over 150 pairs of sets of 32 features, as cubes of few are skewed."""
    level, d = 0.9, 32

    def sets(n, s):
        return normal(n, d, 2 * s), 1.3 * normal(n, d, 2 * s + 1) + 0.5

    expected = np.mean([kernel_distance(*sets(1500, s)) for s in range(10**6, 10**6 + 15)])
    scores = [kernel_score(*sets(100, s), level=level, replicates=200, seed=s) for s in range(150)]
    inside = np.mean([score.low <= expected <= score.high for score in scores])
    assert abs(inside - level) < 0.07  # the standard error of 150 is 0.024
    assert scores[0].n == 100


def inside(points, centres, k):
    """Whether each point lies in a ball that reaches to its centre's k-th neighbour."""
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    reach = np.sort(distance, 1)[:, k]
    return (np.linalg.norm(points[:, None] - centres[None], axis=-1) <= reach).any(1).mean()


@given(st.integers(2, 25), st.integers(2, 25), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_precision_and_recall_are_shares_inside_of_balls(n, m, d, seed):
    generated, real = normal(n, d, seed), 1.5 * normal(m, d, seed + 1) + 0.5
    for k in {1, min(n, m) - 1}:
        found = precision_recall(generated, real, k)
        assert found.precision == pytest.approx(inside(generated, real, k))
        assert found.recall == pytest.approx(inside(real, generated, k))


def test_precision_and_recall_of_known_sets():
    real = np.concatenate((normal(60, 2), normal(60, 2, 1) + 1000))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1e5) == (0, 0)
    half = precision_recall(real[:60], real)  # one of two groups: all true, half of it all
    assert half.precision == 1 and half.recall == 0.5
    # A copy far from the origin is still a copy.
    assert precision_recall(real.astype(np.float32) + 1e4, real.astype(np.float32) + 1e4) == (1, 1)


@pytest.mark.parametrize("module", [kernel, neighbours])
def test_tiles_of_any_side_give_the_same(module, monkeypatch):
    x, y = normal(23, 4), normal(31, 4, 1) + 0.3
    judge = kernel_distance if module is kernel else precision_recall
    whole = judge(x, y)
    monkeypatch.setattr(module, "TILE", 5)
    assert judge(x, y) == pytest.approx(whole, rel=1e-12)


FEW = np.ones((4, 3)) * np.arange(4)[:, None]
TEN = np.arange(40.0).reshape(10, 4) % 7


@pytest.mark.parametrize(
    ("judge", "message"),
    [(lambda: subset_distances(FEW, FEW), "subset_size 1000 is not in 2 to 4"),
     (lambda: kernel_distance(FEW, FEW, subset_size=1), "subset_size 1 is not in 2 to 4"),
     (lambda: kernel_distance(FEW, FEW, subset_size=2, subsets=0), "subsets 0 is below 1"),
     (lambda: kernel_distance(FEW, FEW, picks=[]), "picks names no subset"),
     (lambda: kernel_distance(FEW, FEW[:, :2]), "3 and 2 features a picture"),
     (lambda: kernel_distance(FEW, FEW[:1]), "b has 1 rows; a set has 2 pictures or more"),
     (lambda: kernel_distance(FEW * 0, FEW), "a: all 4 rows are equal"),
     (lambda: kernel_score(FEW, FEW * np.nan), "b: row 0 holds NaN or infinity, and 4 of 4"),
     (lambda: kernel_score(FEW, FEW), "of 4 and 4 pictures has no interval; give 10 or more"),
     (lambda: kernel_score(TEN, TEN, level=95.0), "level 95.0 is not between 0 and 1"),
     (lambda: precision_recall(FEW, FEW, 4), "k is 4, but generated has 4 pictures"),
     (lambda: precision_recall(FEW, FEW, 0), "k is 0"),
     (lambda: precision_recall(FEW, FEW[:3], 3), "k is 3, but real has 3 pictures"),
     (lambda: precision_recall(FEW, FEW[:, :2]), "3 and 2 features a picture"),
     (lambda: precision_recall(FEW, FEW * 0), "real: all 4 rows are equal")],
)  # fmt: skip
def test_sets_that_cannot_be_compared_are_one_sentence(judge, message):
    with pytest.raises(InputError, match=message) as caught:
        judge()
    assert "\n" not in str(caught.value)
