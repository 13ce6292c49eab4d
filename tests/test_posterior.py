"""A posterior from draws or from moments alone, and draws of a network that sees hints."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.metrics.posterior import interval, levels_of
from pointillist.posterior import Posterior, RunningMoments
from pointillist.types import Given, InputError
from tests.awake import awake


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-1e6, 1e6))
@settings(max_examples=40, deadline=None)
def test_streamed_moments_equal_those_of_the_whole(groups, offset):
    number = sum(groups)
    draws = torch.randn(number, 2, 3, generator=torch.manual_seed(number)).double() + offset
    moments = RunningMoments()
    for part in draws.split(groups):
        moments.add(part)
    assert moments.count == number
    torch.testing.assert_close(moments.mean, draws.mean(0), rtol=1e-12, atol=1e-12)
    if number > 1:
        torch.testing.assert_close(moments.variance, draws.var(0), rtol=1e-7, atol=1e-9)


def test_a_large_mean_does_not_eat_a_small_spread():
    draws = 1e4 + 1e-2 * torch.randn(40, 500, generator=torch.manual_seed(0)).double()
    moments = RunningMoments()
    for one in draws:
        moments.add(one[None])
    torch.testing.assert_close(Posterior(moments).std, draws.std(0), rtol=1e-6, atol=0)


def test_quantiles_and_intervals_are_the_same_order_statistics():
    draws = torch.randn(19, 4, 5, generator=torch.manual_seed(1))
    post = Posterior.of(draws)
    ordered = draws.sort(0).values
    assert post.count == 19 and post.levels == levels_of(19)
    for k, level in enumerate(post.levels, 1):
        low, high = post.interval(level)
        assert torch.equal(low, ordered[k - 1]) and torch.equal(high, ordered[-k])
        torch.testing.assert_close(post.quantile(k / 20), low)
        torch.testing.assert_close(post.quantile(1 - k / 20), high)
    torch.testing.assert_close(post.quantile(0.5), draws.median(0).values)
    torch.testing.assert_close(post.quantile(0.125), (ordered[1] + ordered[2]) / 2)
    found = np.quantile(draws.numpy(), 0.33, axis=0, method="weibull")
    np.testing.assert_allclose(post.quantile(0.33).numpy(), found, rtol=1e-5, atol=1e-6)
    assert torch.equal(Posterior.of(draws[:1]).quantile(0.5), draws[0])


def test_a_place_without_domain_has_no_quantile_and_no_interval():
    draws = torch.arange(9.0)[:, None].repeat(1, 2)
    draws[4, 1] = torch.nan
    post = Posterior.of(draws)
    low, high = post.interval(0.8)
    assert post.quantile(0.1).isnan().tolist() == [False, True] == low.isnan().tolist()
    assert post.quantile(0.9)[0] == high[0] == 8.0
    whole, _ = interval(np.arange(9), 0.8)  # whole numbers will do
    assert whole == 0.0


def test_only_hidden_places_are_judged_unless_told_otherwise():
    draws = torch.randn(9, 2, 3, 4, generator=torch.manual_seed(2))
    hidden = torch.zeros(2, 1, 4).bool()
    hidden[..., 2:] = True
    truth = draws[0] + 0.1
    post, whole = Posterior.of(draws, hidden), Posterior.of(draws)
    assert post.crps(truth) == whole.crps(truth, hidden) != whole.crps(truth)
    assert post.crps(truth) == pytest.approx(
        Posterior.of(draws[..., 2:]).crps(truth[..., 2:].numpy())
    )
    assert post.coverage(truth, 0.8) == whole.coverage(truth, 0.8, hidden)
    assert post.crps(truth, torch.ones(1).bool()) == whole.crps(truth)


MOMENTS = Posterior(RunningMoments().add(torch.zeros(9, 2)))
DRAWS = Posterior.of(torch.zeros(9, 2))


@pytest.mark.parametrize(
    ("ask", "message"),
    [(lambda: MOMENTS.draws, "the draws were not kept, only their mean and variance"),
     (lambda: MOMENTS.quantile(0.5), "the draws were not kept"),
     (lambda: MOMENTS.interval(0.8), "ask for the posterior with keep=True"),
     (lambda: MOMENTS.crps(torch.zeros(2)), "the draws were not kept"),
     (lambda: DRAWS.interval(0.9), "level is 0.9, but 9 draws can express 0.8, 0.6, 0.4, 0.2 only"),
     (lambda: DRAWS.quantile(0.05), "quantile is 0.05, but 9 draws reach from 0.1 to 0.9"),
     (lambda: DRAWS.quantile(float("nan")), "quantile is nan"),
     (lambda: Posterior.of(torch.zeros(1, 2)).std, "the spread of 1 draw is not known"),
     (lambda: Posterior.of(torch.zeros(0, 2)), "draws is 0; a posterior needs 1"),
     (lambda: RunningMoments().add(torch.zeros(1, 2)).add(torch.zeros(1, 3)), "give one shape")],
)  # fmt: skip
def test_what_the_draws_do_not_say_is_refused(ask, message):
    with pytest.raises(InputError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_moments_alone_have_mean_and_spread_in_the_draws_precision():
    draws = torch.randn(5, 3)
    post = Posterior(RunningMoments().add(draws))
    assert post.mean.dtype == post.std.dtype == torch.float32
    torch.testing.assert_close(post.mean, draws.mean(0))
    torch.testing.assert_close(post.std, draws.std(0))
    assert "5 draws of 3)" in repr(post) and "kept" in repr(Posterior.of(draws))


@pytest.fixture(scope="module")
def trained():
    return awake("model.encoder.kind=grid", "task.kind=hints", "sample.steps=2")


@pytest.fixture(scope="module")
def known():
    make = torch.manual_seed(0)
    seen = torch.rand(3, 3, 32, 32, generator=make) * 2 - 1
    return Given(seen=seen, mask=torch.rand(3, 1, 32, 32, generator=make) < 0.3)


def test_a_draw_is_a_function_of_seed_picture_and_number(trained, known):
    whole = trained.posterior(known, draws=4, seed=5)
    assert whole.draws.shape == (4, 3, 3, 32, 32) and whole.count == 4
    for ask in ({"batch": 1}, {"batch": 7}, {"draws": 2}):
        some = trained.posterior(known, **{"draws": 4, "seed": 5, **ask})
        torch.testing.assert_close(some.draws, whole.draws[: some.count], rtol=1e-5, atol=1e-5)
    first = Given(seen=known.seen[:2], mask=known.mask[:2])
    fewer = trained.posterior(first, draws=4, seed=5)
    torch.testing.assert_close(fewer.draws, whole.draws[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trained.sample(3, label=-1, seed=5, known=known), whole.draws[0])
    hidden = ~known.mask.expand(4, 3, 3, 32, 32)
    assert torch.equal(whole.hidden, ~known.mask)
    assert (whole.draws.std(0)[hidden[0]] > 0).all()  # no two draws share their noise
    assert torch.equal(whole.draws[~hidden], known.seen.expand(4, -1, -1, -1, -1)[~hidden])
    other = trained.posterior(known, draws=1, seed=6).draws
    assert (other[0] != whole.draws[0])[hidden[0]].all()


def test_draws_that_are_not_kept_leave_the_same_moments(trained, known):
    kept = trained.posterior(known, draws=5, label=[3, 1, 2])
    heard = []
    lean = trained.posterior(known, draws=5, label=[3, 1, 2], keep=False, batch=6,
                             progress=heard.append)  # fmt: skip
    torch.testing.assert_close(lean.mean, kept.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lean.std, kept.std, rtol=1e-4, atol=1e-5)
    assert heard == [6, 12, 15]
    with pytest.raises(InputError, match="not kept"):
        _ = lean.draws
    other = trained.posterior(known, draws=1, label=[3, 1, 9]).draws - kept.draws[0]
    assert other[0, :2].abs().max() < 1e-5 < other[0, 2].abs().max()  # labels stay with pictures


def test_one_row_of_hints_serves_every_label(trained, known):
    one = Given(at=torch.tensor([[[-0.9, -0.9], [0.9, 0.9]]]), value=torch.ones(1, 3, 2))
    post = trained.posterior(one, draws=2, label=(1, 2))
    assert post.draws.shape == (2, 2, 3, 32, 32) and int((~post.hidden).sum()) == 4
    assert trained.posterior(one, draws=2, label=1).draws.shape == (2, 1, 3, 32, 32)
    with pytest.raises(InputError, match="draws is 0"):
        trained.posterior(one, draws=0)
    with pytest.raises(InputError, match="2 labels for 3 pictures"):
        trained.posterior(known, draws=1, label=(1, 2))
    with pytest.raises(InputError, match="nothing is known"):
        trained.posterior(Given(), draws=1)
