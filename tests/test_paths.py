"""The table of paths: derivatives, ends, and what every prediction means on every path."""

import functools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw
from pointillist.losses import LossConfig, criterion
from pointillist.objective import (
    CosineConfig,
    DDPMConfig,
    EDMConfig,
    GVPConfig,
    LogitNormal,
    Objective,
    StraightConfig,
    Uniform,
    VEConfig,
    VPConfig,
    shift_times,
)
from pointillist.run import from_dict, to_dict
from pointillist.types import Estimate, InputError

PATHS = get_args(get_args(Objective)[0])
KINDS = [path().kind for path in PATHS]
PREDICTIONS = ("x", "velocity", "eps")
DRAW = Draw(0, torch.arange(4))
X, EPS = DRAW.normal("x", (2, 3, 5)).double(), DRAW.normal("eps", (2, 3, 5)).double()

every_path = pytest.mark.parametrize("path", PATHS)
PAIRS = [(path, predict) for path in PATHS
         for predict in (("residual",) if path is EDMConfig else PREDICTIONS)]  # fmt: skip
every_pair = pytest.mark.parametrize(("path", "predict"), PAIRS)
inner = st.floats(0.02, 0.98).map(lambda t: torch.tensor(t, dtype=torch.float64))


@every_path
@settings(deadline=None)
@given(t=inner)
def test_rates_are_the_derivatives(path, t):
    path, at = path(), t.clone().requires_grad_()
    for value, rate in ((path.alpha, path.alpha_rate), (path.sigma, path.sigma_rate)):
        if value(at).requires_grad:
            (by_autograd,) = torch.autograd.grad(value(at), at)
            torch.testing.assert_close(rate(t), by_autograd, rtol=1e-10, atol=1e-12)
        h = 1e-5
        difference = (value(t + h) - value(t - h)) / (2 * h)
        torch.testing.assert_close(rate(t), difference, rtol=1e-5, atol=1e-6)


@every_path
def test_signal_grows_noise_falls_and_data_come_last(path):
    path, t = path(), torch.linspace(0, 1, 101, dtype=torch.float64)
    signal = path.alpha(t) / path.sigma(t)
    assert (signal.diff() > 0).all()
    start, end = torch.tensor(0.0), torch.tensor(1.0)
    assert float(path.alpha(end)) == 1
    if path.kind in ("ve", "edm"):
        assert float(path.sigma(start)) == 80 and float(path.sigma(end)) == pytest.approx(0.002)
    else:
        assert float(path.sigma(end)) == 0 and not math.copysign(1, float(path.sigma(end))) < 0
        assert float(path.sigma(start)) == pytest.approx(1, abs=1e-4)
        assert float(path.alpha(start)) == pytest.approx(0, abs=0.01)
    if path.kind in ("gvp", "vp", "cosine", "ddpm"):
        torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))
    for rate in (path.alpha_rate, path.sigma_rate):
        assert torch.isfinite(rate(t)).all()


@every_path
@settings(deadline=None)
@given(t=inner)
def test_a_time_is_found_again_by_its_share_of_signal(path, t):
    path = path()
    torch.testing.assert_close(path.at(path.share(t)), t, rtol=1e-9, atol=1e-10)
    both = path.at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert both.tolist() == [0, 1]


@every_pair
@settings(deadline=None)
@given(t=st.floats(0.02, 0.98))
def test_reading_the_answer_that_means_a_pair_gives_the_pair(path, predict, t):
    objective, times = path(predict=predict), torch.full((4,), t, dtype=torch.float64)
    xt, pair = objective.mix(X, EPS, times), Estimate(X, EPS)
    answer = objective.answer(pair, times)
    found = objective.read(answer, xt, times, clamp=0.0)
    if predict == "eps" and objective.alpha(times[0]) < objective.faintest:
        return  # no picture is read from so faint a one
    # From one half of a pair the other comes by a division by what is left of it in the state.
    loss = max(1, float(1 / objective.sigma(times[0])), float(objective.sigma(times[0])))
    torch.testing.assert_close(found.x, X, rtol=0, atol=1e-11 * loss)
    torch.testing.assert_close(found.eps, EPS, rtol=0, atol=1e-11 * loss)
    again = objective.answer(found, times)
    torch.testing.assert_close(again, answer, rtol=1e-9, atol=1e-9 * loss)


@every_path
@settings(deadline=None)
@given(t=st.floats(0.02, 0.98))
def test_the_velocity_is_the_derivative_of_the_state(path, t):
    objective, h = path(), 1e-6
    times = torch.full((4,), t, dtype=torch.float64)
    moved = objective.mix(X, EPS, times + h) - objective.mix(X, EPS, times - h)
    velocity = objective.velocity(Estimate(X, EPS), times)
    torch.testing.assert_close(moved / (2 * h), velocity, rtol=1e-6, atol=1e-5)


@every_pair
def test_a_perfect_network_has_no_loss_at_any_time(path, predict):
    objective, every = path(predict=predict), LossConfig(velocity=1.0, x=1.0, eps=1.0)
    for t in (0.0, 1e-4, 0.5, 0.97, 1 - 1e-6, 1.0):
        times = torch.full((4,), t)
        x, eps = X.float(), EPS.float()
        xt = objective.mix(x, eps, times)
        truth = objective.target(x, eps, xt, times)
        answer = objective.answer(Estimate(x, eps), times)

        def velocity(pair, times=times):
            return objective.velocity(pair, times)

        loss, _ = criterion(every, objective.read(answer, xt, times), truth, velocity=velocity)
        assert loss.abs().max() == 0
        near = min(float(objective.alpha(times[0])), float(objective.sigma(times[0])))
        if near > objective.clamp:  # where no clamp acts, that is the pair itself
            torch.testing.assert_close(truth.x, x, rtol=0, atol=1e-4)
            torch.testing.assert_close(truth.eps, eps, rtol=0, atol=1e-4)
        guess = objective.read(answer + 0.1, xt, times)
        loss, terms = criterion(every, guess, truth, velocity=velocity)
        assert torch.isfinite(loss).all() and loss.min() > 0
        error = velocity(guess) - velocity(truth)
        torch.testing.assert_close(terms["velocity"], error.square().flatten(1).mean(1))


@every_path
def test_logit_normal_times_mean_the_same_noise_on_every_path(path):
    draw = Draw(0, torch.arange(4_000))
    objective = path(time=LogitNormal(mean=-0.3, std=0.8), shift=2.0)
    t = objective.times(draw)
    assert t.dtype == torch.float32 and 0 <= t.min() and t.max() <= 1
    straight = StraightConfig(time=LogitNormal(mean=-0.3, std=0.8), shift=2.0).times(draw)
    within = (t > 0.001) & (t < 0.999)
    assert within.float().mean() > 0.95
    if path is DDPMConfig:  # of whole steps: the last that is not past it
        later = objective.share(t + 1 / objective.steps)[within]
        assert (objective.share(t)[within] < straight[within] + 2e-5).all()
        assert (later > straight[within] - 2e-5).all()
        return
    torch.testing.assert_close(objective.share(t)[within], straight[within], rtol=0, atol=2e-5)


@every_path
@pytest.mark.parametrize("shift", [0.25, 1.0, 4.0])
def test_drawn_times_do_not_pile_up_anywhere(path, shift):
    """Not at an end either, where VP and VE have less noise, or signal, than others."""
    for time in (Uniform(), LogitNormal(mean=-0.8, std=0.8), path().time):
        drawn = path(time=time, shift=shift).times(Draw(0, torch.arange(4_000)))
        assert int(drawn.unique(return_counts=True)[1].max()) <= 40


@every_path
def test_as_many_times_are_drawn_where_steps_begin(path):
    """A tenth of the steps of an even grid begin before t = 0.1, and a tenth after 0.9."""
    if path is EDMConfig:
        path = functools.partial(EDMConfig, time=Uniform())  # its own times are of middle noises
    drawn = path().times(Draw(0, torch.arange(4_000)))
    assert (drawn < 0.1).float().mean() > 0.01 and (drawn > 0.9).float().mean() > 0.01


@every_path
def test_uniform_times_are_even_in_the_paths_own_time(path):
    draw = Draw(0, torch.arange(4_000))
    drawn = path(time=Uniform()).times(draw)
    if path is DDPMConfig:  # down to a whole step
        told = DDPMConfig().see(torch.zeros(4_000, 1, 1), drawn)[1]
        assert torch.equal(told, 999 - (draw.uniform("time") * 1000).floor())
        return
    assert torch.equal(drawn, draw.uniform("time"))
    shifted = path(time=Uniform(), shift=3.0).times(draw)
    assert torch.equal(shifted, shift_times(draw.uniform("time"), 3.0))


@every_path
def test_times_do_not_depend_on_how_a_batch_is_split(path):
    objective = path(time=LogitNormal(), shift=3.0)
    whole = objective.times(Draw(0, torch.arange(1003)))
    parts = [objective.times(Draw(0, torch.arange(i, min(i + 7, 1003)))) for i in range(0, 1003, 7)]
    assert torch.equal(whole, torch.cat(parts))
    for value in (objective.alpha, objective.sigma, objective.alpha_rate, objective.sigma_rate):
        assert torch.equal(value(whole), torch.cat([value(part) for part in parts]))


def test_the_straight_path_is_what_it_was_to_the_last_bit():
    """Runs trained before there was a table keep their numbers."""
    x, eps = X.float(), EPS.float()
    objective, draw = StraightConfig(shift=3.0, time=Uniform()), Draw(0, torch.arange(999))
    assert torch.equal(objective.times(draw), shift_times(draw.uniform("time"), 3.0))
    t = torch.tensor([0.0, 0.3, 0.999, 1.0])
    at = t.view(-1, 1, 1, 1)
    xt = objective.mix(x, eps, t)
    assert torch.equal(xt, at * x + (1 - at) * eps)
    found = objective.read(eps, xt, t)
    assert torch.equal(found.x, xt + (1 - at) * eps) and torch.equal(found.eps, xt - at * eps)
    assert torch.equal(objective.velocity(Estimate(x, eps), t), x - eps)
    found = StraightConfig(predict="x").read(x, xt, t)
    assert torch.equal(found.eps, x - (x - xt) / (1 - at).clamp(min=0.05))
    found = StraightConfig(predict="eps").read(eps, xt, t)
    assert torch.equal(found.x, eps + (xt - eps) / at.clamp(min=0.05))


def test_the_network_sees_states_of_even_size_on_the_exploding_path():
    for t in (0.0, 0.5, 1.0):
        times = torch.full((4,), t)
        xt = VEConfig().mix(X.float(), EPS.float(), times)
        assert 0.7 < float(VEConfig().see(xt, times)[0].std()) < 1.3
        assert VEConfig().see(xt, times)[1] is times
        strong = VEConfig(noise_scale=2.0, noise_size=4)
        eps = EPS.float() * strong.noise_strength((3, 5))
        assert 0.7 < float(strong.see(strong.mix(X.float(), eps, times), times)[0].std()) < 1.3
        assert GVPConfig().see(xt, times)[0] is xt


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_a_word_of_the_configuration(kind):
    predict = "residual" if kind == "edm" else "eps"
    run = from_dict({}, (f"objective.kind={kind}", f"objective.predict={predict}"))
    assert run.objective.kind == kind and run.objective.predict == predict
    assert from_dict(to_dict(run)) == run and KINDS[0] == "straight"
    assert from_dict({"objective": {"predict": "x"}}).objective == StraightConfig(predict="x")


@pytest.mark.parametrize(
    ("path", "fields"),
    [(VPConfig, {"beta_min": 0.0}), (VPConfig, {"beta_min": 3.0, "beta_max": 2.0}),
     (VEConfig, {"sigma_min": 0.0}), (VEConfig, {"sigma_min": 90.0}),
     (VPConfig, {"beta_min": math.nan}), (VEConfig, {"sigma_min": math.nan})],
)  # fmt: skip
def test_bounds_that_make_no_path_are_refused(path, fields):
    with pytest.raises(InputError, match=f"objective.{next(iter(fields))} is .*; set 0 <"):
        path(**fields)
    for endless in ({"beta_max": math.inf}, {"sigma_max": math.inf}):
        if hasattr(path, next(iter(endless))):
            with pytest.raises(InputError, match="is inf; set 0 <|max inf; set 0 <"):
                path(**endless)
    with pytest.raises(InputError, match="objective.clamp"):
        path(clamp=1.0)


def test_cosine_is_the_published_schedule_and_gvp_without_offset():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)

    def published(u):
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    bar = published(1 - t) / published(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(CosineConfig().alpha(t), bar.sqrt())
    torch.testing.assert_close(CosineConfig().sigma(t), (1 - bar).sqrt())
    nearly = CosineConfig(offset=1e-9)
    for name in ("alpha", "sigma", "alpha_rate", "sigma_rate"):
        torch.testing.assert_close(getattr(nearly, name)(t), getattr(GVPConfig(), name)(t))
    for offset in (0.0, 1.1, math.nan):
        with pytest.raises(InputError, match="objective.offset is .*kind=gvp"):
            CosineConfig(offset=offset)


def test_the_loss_of_edm_is_the_published_one():
    """lambda |D(y + n) - y|^2 with D = c_skip x + c_out F, which is |F - F*|^2."""
    objective, data = EDMConfig(), 0.5
    weights = LossConfig(velocity=0.0, x=1 / data**2, eps=1.0)
    for t in (0.0, 0.2, 0.5, 0.8, 1.0):
        times = torch.full((4,), t, dtype=torch.float64)
        sigma = 80 * (0.002 / 80) ** t
        xt = X + sigma * EPS
        seen, told = objective.see(xt, times)
        torch.testing.assert_close(seen, xt / math.sqrt(sigma**2 + data**2))
        torch.testing.assert_close(told, torch.full_like(times, math.log(sigma) / 4))
        answer = Draw(5, torch.arange(4)).normal("F", (2, 3, 5)).double()
        skip = data**2 / (sigma**2 + data**2)
        out = sigma * data / math.sqrt(sigma**2 + data**2)
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        paper = (weight * (skip * xt + out * answer - X).square()).flatten(1).mean(1)
        guess, truth = objective.read(answer, xt, times), objective.target(X, EPS, xt, times)
        torch.testing.assert_close(guess.x, skip * xt + out * answer)
        loss, _ = criterion(weights, guess, truth)
        torch.testing.assert_close(loss.double(), paper, rtol=1e-5, atol=0)
        unit = (answer - (X - skip * xt) / out).square().flatten(1).mean(1)
        torch.testing.assert_close(paper, unit, rtol=1e-6, atol=0)


def test_edm_draws_its_noises_and_takes_no_other_prediction_or_clamp():
    sigma = EDMConfig().sigma(EDMConfig().times(Draw(0, torch.arange(20_000))).double()).log()
    assert float(sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(sigma.std()) == pytest.approx(1.2, rel=0.02)
    with pytest.raises(InputError, match="objective.predict"):
        from_dict({}, ("objective.kind=edm", "objective.predict=x"))
    for fields in ({"clamp": 0.05}, {"sampling_clamp": 0.1}, {"sigma_data": 0.0}):
        with pytest.raises(InputError, match=f"objective.{next(iter(fields))} is "):
            EDMConfig(**fields)
    eps = 2 * EPS
    strong, times = EDMConfig(noise_scale=2.0), torch.full((4,), 0.6, dtype=torch.float64)
    answer = strong.answer(Estimate(X, eps), times)
    found = strong.read(answer, strong.mix(X, eps, times), times)
    torch.testing.assert_close(found.x, X)
    torch.testing.assert_close(found.eps, eps)
