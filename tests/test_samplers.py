"""Samplers on problems whose answer is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.samplers import SAMPLERS, time_grid
from pointillist.types import InputError

ORDER = {"euler": 1, "heun": 2, "ab2": 2, "ab2_even": 2, "dpmpp_2m": 2}
EVALUATIONS = {"euler": 1, "heun": 2, "ab2": 1, "ab2_even": 1, "dpmpp_2m": 1}

every = pytest.mark.parametrize("name", SAMPLERS)
grids = st.lists(st.floats(0, 1), min_size=3, max_size=8, unique=True).map(
    lambda values: torch.tensor(sorted(values), dtype=torch.float64)
)


@every
@settings(deadline=None)
@given(times=grids)
def test_a_constant_oracle_is_followed_exactly_on_any_grid(name, times):
    """With D = x the path from e is t x + (1 - t) e, wherever the grid starts and ends."""
    if (times.diff() < 1e-6).any():
        return
    picture, noise = torch.randn(2, 3, dtype=torch.float64, generator=torch.manual_seed(0))

    def field(x, t):
        return (picture - x) / (1 - t)

    start, end = times[0], times[-1]
    x = SAMPLERS[name](field, start * picture + (1 - start) * noise, times)
    torch.testing.assert_close(x, end * picture + (1 - end) * noise, rtol=0, atol=1e-8)


def gaussian(mean: float, s: float):
    """The exact velocity of N(mean, s^2), and where it carries noise x0 by time t."""

    def field(x, t):
        variance = (t * s) ** 2 + (1 - t) ** 2
        centred = (x - t * mean) / variance
        return mean + t * s**2 * centred - (1 - t) * centred

    def exact(x0, t):
        return t * mean + math.sqrt((t * s) ** 2 + (1 - t) ** 2) * x0

    return field, exact


@every
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_samplers_converge_at_their_order_on_a_gaussian_target(name, shift):
    field, exact = gaussian(0.7, 0.5)
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = []
    for steps in (640, 1280, 2560):  # dpmpp_2m starts at lambda = -inf and pays a logarithm
        x = SAMPLERS[name](field, x0, time_grid(steps, shift))
        errors.append(float((x - exact(x0, 1.0)).abs().max()))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(ORDER[name], abs=0.25)


@every
def test_samples_of_a_gaussian_target_have_its_moments(name):
    field, _ = gaussian(0.7, 0.5)
    from pointillist.draws import Draw

    noise = Draw(0, torch.arange(20_000)).normal("noise", (1,)).double()
    x = SAMPLERS[name](field, noise, time_grid(40))
    assert float(x.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.04)


@every
def test_the_end_is_never_asked_and_evaluations_are_as_many_as_stated(name):
    asked = []

    def field(x, t):
        asked.append(float(t))
        return -x

    x = SAMPLERS[name](field, torch.ones(2), time_grid(5))
    assert max(asked) < 1 and min(asked) == 0 and torch.isfinite(x).all()
    assert len(asked) == 5 * EVALUATIONS[name] - (name == "heun")
    assert x.dtype == torch.float32


@every
def test_watch_sees_every_step_and_cancels_by_raising(name):
    seen = []
    SAMPLERS[name](
        lambda x, t: -x, torch.ones(2), time_grid(4),
        watch=lambda i, t, x, pair: seen.append((i, round(t, 6), pair)),
    )  # fmt: skip
    assert seen == [(0, 0.0, None), (1, 0.25, None), (2, 0.5, None), (3, 0.75, None)]

    def stop(i, t, x, pair):
        if i == 2:
            raise KeyboardInterrupt

    calls = []
    with pytest.raises(KeyboardInterrupt):
        SAMPLERS[name](lambda x, t: calls.append(t) or -x, torch.ones(2), time_grid(4), watch=stop)
    assert len(calls) <= 3 * EVALUATIONS[name]


def test_ab2_weighs_by_the_actual_steps():
    """For v = a + b t only the first (Euler) step errs, by b dt^2 / 2, on any grid."""
    times = torch.tensor([0.0, 0.1, 0.15, 0.6, 1.0], dtype=torch.float64)
    x = SAMPLERS["ab2"](
        lambda x, t: (2 + 3 * t) * torch.ones_like(x), torch.zeros(1).double(), times
    )
    assert float(x) == pytest.approx(2 + 1.5 - 3 * 0.1**2 / 2, abs=1e-12)


def test_the_last_step_of_dpmpp_lands_on_the_picture():
    picture = torch.tensor([0.3, -0.8])
    x = SAMPLERS["dpmpp_2m"](lambda x, t: (picture - x) / (1 - t), torch.randn(2), time_grid(7))
    torch.testing.assert_close(x, picture)


def test_a_grid_has_one_time_more_than_steps():
    assert time_grid(1).tolist() == [0, 1]
    assert time_grid(4, 3.0)[2] == pytest.approx(0.25)
    with pytest.raises(InputError, match="steps is 0"):
        time_grid(0)


def test_ab2_even_keeps_the_weights_of_even_steps():
    """The same as ab2 on an even grid; on another x += dt (1.5 v - 0.5 v_before), as published."""

    def field(x, t):
        return x * torch.cos(3 * t) - t**2

    x0 = torch.linspace(-1, 1, 5, dtype=torch.float64)
    even, shifted = time_grid(6), time_grid(6, 3.0)
    torch.testing.assert_close(
        SAMPLERS["ab2_even"](field, x0, even), SAMPLERS["ab2"](field, x0, even)
    )
    x, before = x0, None
    for t, end in zip(shifted[:-1], shifted[1:], strict=True):
        v = field(x, t)
        x = x + (end - t) * (v if before is None else 1.5 * v - 0.5 * before)
        before = v
    torch.testing.assert_close(SAMPLERS["ab2_even"](field, x0, shifted), x)
    assert (SAMPLERS["ab2"](field, x0, shifted) - x).abs().max() > 1e-4
