"""The straight path, its three predictions, and the losses on it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw
from pointillist.losses import LossConfig, criterion
from pointillist.objective import FAINTEST, LogitNormal, StraightConfig, Uniform, shift_times
from pointillist.types import InputError

PREDICTIONS = ("x", "velocity", "eps")
DRAW = Draw(0, torch.arange(4))
X, EPS = DRAW.normal("x", (2, 3, 5)), DRAW.normal("eps", (2, 3, 5))


def column(t: torch.Tensor) -> torch.Tensor:
    return t.view(-1, 1, 1, 1)


def test_the_path_runs_from_noise_to_data():
    objective = StraightConfig()
    assert torch.equal(objective.mix(X, EPS, torch.zeros(4)), EPS)
    assert torch.equal(objective.mix(X, EPS, torch.ones(4)), X)


@pytest.mark.parametrize("predict", PREDICTIONS)
@settings(deadline=None)
@given(t=st.floats(0.05, 0.95))
def test_a_perfect_network_gives_the_straight_velocity(predict, t):
    objective = StraightConfig(predict=predict)
    times = torch.full((4,), t)
    xt = objective.mix(X, EPS, times)
    answer = {"x": X, "velocity": X - EPS, "eps": EPS}[predict]
    estimate = objective.read(answer, xt, times)
    torch.testing.assert_close(objective.velocity(estimate, times), X - EPS, rtol=0, atol=2e-4)
    torch.testing.assert_close(estimate.x, X, rtol=0, atol=2e-4)
    torch.testing.assert_close(estimate.eps, EPS, rtol=0, atol=2e-4)


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_a_perfect_network_has_no_loss_at_any_time(predict):
    objective = StraightConfig(predict=predict)
    for t in (0.0, 1e-4, 0.5, 0.97, 1 - 1e-6, 1.0):
        times = torch.full((4,), t)
        xt = objective.mix(X, EPS, times)
        truth = objective.target(X, EPS, xt, times)
        assert all(torch.isfinite(part).all() for part in truth[:2])
        every = LossConfig(velocity=1.0, x=1.0, eps=1.0)
        answer = {"x": X, "velocity": X - EPS, "eps": EPS}[predict]
        loss, terms = criterion(every, objective.read(answer, xt, times), truth)
        assert loss.abs().max() == 0 and set(terms) == {"velocity", "x", "eps"}
        loss, _ = criterion(every, objective.read(answer + 0.1, xt, times), truth)
        assert torch.isfinite(loss).all() and loss.min() > 0.005


def test_the_clamp_acts_on_answer_and_target_alike():
    objective, t = StraightConfig(predict="x", clamp=0.05), torch.full((4,), 0.99)
    xt = objective.mix(X, EPS, t)
    truth = objective.target(X, EPS, xt, t)
    torch.testing.assert_close(objective.velocity(truth, t), (X - xt) / 0.05)
    guess = objective.read(X + 0.1, xt, t)
    loss, _ = criterion(LossConfig(), guess, truth)
    torch.testing.assert_close(loss, torch.full((4,), (0.1 / 0.05) ** 2), rtol=1e-3, atol=0)


@given(t=st.floats(0.06, 0.94))
def test_the_three_losses_differ_by_the_weight_of_time_alone(t):
    objective, times = StraightConfig(predict="x"), torch.full((4,), t)
    xt = objective.mix(X, EPS, times)
    guess = objective.read(X + 0.3 * EPS, xt, times)
    truth = objective.target(X, EPS, xt, times)
    found = {
        name: criterion(LossConfig(**{"velocity": 0.0, name: 1.0}), guess, truth)[0]
        for name in ("velocity", "x", "eps")
    }
    torch.testing.assert_close(found["x"] / (1 - t) ** 2, found["velocity"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["eps"] / t**2, found["velocity"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("predict", "space"), list(itertools.product(PREDICTIONS, repeat=2)))
def test_the_best_answer_for_a_gaussian_target_is_its_posterior_mean(predict, space):
    """For x ~ N(m, s^2) the loss is least, over answers a + b x_t, at E[answer | x_t]."""
    m, s, t = 0.4, 0.5, 0.6
    draw = Draw(3, torch.arange(40_000))
    x, eps = m + s * draw.normal("x", (1, 1)), draw.normal("eps", (1, 1))
    objective, times = StraightConfig(predict=predict), torch.full((40_000,), t)
    xt = objective.mix(x, eps, times)
    variance = (t * s) ** 2 + (1 - t) ** 2
    x_slope, eps_slope = t * s**2 / variance, (1 - t) / variance
    slope = {"x": x_slope, "eps": eps_slope, "velocity": x_slope - eps_slope}[predict]
    level = {"x": m, "eps": 0.0, "velocity": m}[predict]
    ab = torch.tensor([level - slope * t * m, slope], requires_grad=True)
    weights = LossConfig(**{"velocity": 0.0, space: 1.0})
    guess = objective.read(ab[0] + ab[1] * xt, xt, times)
    loss = criterion(weights, guess, objective.target(x, eps, xt, times))[0].mean()
    loss.backward()
    assert ab.grad is not None and ab.grad.abs().max() < 0.05
    off = objective.read(ab[0] + 0.1 + (ab[1] + 0.1) * xt, xt, times)
    worse = criterion(weights, off, objective.target(x, eps, xt, times))[0].mean()
    assert worse > loss


def test_weight_says_where_and_how_much_the_answer_counts():
    weight = torch.zeros(4, 1, 3, 5)
    weight[..., 0] = 2.0
    objective, t = StraightConfig(predict="velocity"), torch.full((4,), 0.5)
    xt = objective.mix(X, EPS, t)
    error = torch.zeros_like(X)
    error[..., 0], error[..., 1:] = 0.5, 100.0
    guess = objective.read(X - EPS + error, xt, t)
    loss, _ = criterion(LossConfig(), guess, objective.target(X, EPS, xt, t), weight)
    # One of five columns counts, twice: 0.25 x 2 / 5, and not the 0.25 of a weighted mean.
    torch.testing.assert_close(loss, torch.full((4,), 0.1), rtol=1e-4, atol=0)


def test_the_shift_keeps_the_ends_and_the_order():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_times(t, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted.diff() > 0).all()
    assert float(shifted[5]) == pytest.approx(0.25)
    assert torch.equal(shift_times(t, 1.0), t)


def test_times_are_drawn_as_they_are_named():
    draw = Draw(0, torch.arange(20_000))
    uniform = Uniform().times(draw)
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    logit = torch.logit(LogitNormal(mean=-0.8, std=0.8).times(draw).double())
    assert abs(logit.mean() + 0.8) < 0.02 and abs(logit.std() - 0.8) < 0.02
    shifted = StraightConfig(time=Uniform(), shift=3.0).times(draw)
    torch.testing.assert_close(shifted, shift_times(uniform, 3.0))


def test_times_do_not_depend_on_how_a_batch_is_split():
    for kind in (Uniform(), LogitNormal(mean=-0.8, std=0.8)):
        whole = kind.times(Draw(0, torch.arange(1003)))
        parts = [kind.times(Draw(0, torch.arange(i, min(i + 7, 1003)))) for i in range(0, 1003, 7)]
        assert torch.equal(whole, torch.cat(parts))


def test_a_wrong_noise_is_divided_by_no_less_than_the_faintest_alpha_or_the_clamp():
    """In training that is the clamp, 0.05; elsewhere what is asked for, and never nothing."""
    objective, t = StraightConfig(predict="eps"), torch.zeros(4)
    for clamp, least in ((None, 0.05), (objective.sampling_clamp, FAINTEST), (0.3, 0.3)):
        found = objective.read(EPS + 0.01, EPS, t, clamp=clamp)
        error = objective.velocity(found, t).abs().max()
        assert float(error) == pytest.approx(0.01 / least, rel=1e-4)


def test_noise_grows_with_the_edge_where_asked():
    objective = StraightConfig(noise_size=256)
    assert objective.noise_strength((256, 256)) == 1
    assert objective.noise_strength((512, 512)) == 2
    assert objective.noise_strength((512, 128)) == pytest.approx(1)
    assert StraightConfig(noise_scale=0.5).noise_strength((512, 512)) == 0.5
    eps = objective.noise(Draw(0, torch.arange(64)), (3, 128, 128))
    assert float(eps.std()) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [{"shift": 0.0}, {"noise_scale": -1.0}, {"clamp": 1.0}, {"sampling_clamp": -0.1},
     {"noise_size": 0}, {"shift": math.nan}, {"shift": math.inf}, {"noise_scale": math.nan},
     {"noise_scale": math.inf}, {"clamp": math.nan}],
)  # fmt: skip
def test_fields_out_of_range_are_named(fields):
    name = next(iter(fields))
    with pytest.raises(InputError, match=f"objective.{name}"):
        StraightConfig(**fields)
    for std in (0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="objective.time.std"):
            LogitNormal(std=std)
    with pytest.raises(InputError, match="objective.time.mean is nan; it must be a finite number"):
        LogitNormal(mean=math.nan)
    with pytest.raises(InputError, match="nothing would be learnt"):
        LossConfig(velocity=0.0)
    with pytest.raises(InputError, match="loss.x is -1"):
        LossConfig(x=-1.0)


def test_learned_sigma_channels_are_left_out():
    objective, t = StraightConfig(predict="velocity"), torch.full((4,), 0.5)
    xt = objective.mix(X, EPS, t)
    double = torch.cat((X - EPS, torch.full_like(X, math.pi)), 1)
    assert objective.read(double, xt, t).x.shape == X.shape
