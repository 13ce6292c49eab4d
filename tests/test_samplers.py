"""Samplers on problems whose answer is known."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw
from pointillist.objective import EDMConfig, GVPConfig, Objective, VEConfig, VPConfig
from pointillist.samplers import GRIDS, SAMPLERS, STOCHASTIC, lms, time_grid, times_of
from pointillist.samplers.times import ratio_of
from pointillist.types import Estimate, InputError

# Over a walk of five steps from 0 to 1.
EVALUATIONS = {"euler": 5, "heun": 9, "heun_edm": 8, "ab2": 5, "ab2_even": 5, "lms": 5,
               "dpmpp_2m": 5, "dpmpp_2s": 8, "unipc": 5, "ddim": 5, "euler_maruyama": 5,
               "stochastic_heun": 9, "ddpm": 5, "ddpm_large": 5, "euler_ancestral": 5,
               "dpmpp_2s_ancestral": 8, "dpmpp_2m_sde": 5, "heun_churn": 8,
               "langevin": 9}  # fmt: skip

every = pytest.mark.parametrize("name", SAMPLERS)
steady = pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in STOCHASTIC])


def none(i):
    return torch.zeros(())


# Steps of like size: four velocities joined over steps that grow a millionfold are no walk.
even_grids = st.lists(st.floats(0.2, 1), min_size=3, max_size=8).map(
    lambda widths: torch.tensor([0.0, *widths], dtype=torch.float64).cumsum(0) / sum(widths)
)
grids = st.lists(st.floats(0, 1), min_size=3, max_size=8, unique=True).map(
    lambda values: torch.tensor(sorted(values), dtype=torch.float64)
)


@steady
@settings(deadline=None)
@given(times=grids, even=even_grids, low=st.floats(0, 0.4), high=st.floats(0.6, 1))
def test_a_constant_oracle_is_followed_exactly_on_any_grid(name, times, even, low, high):
    """With D = x the path from e is t x + (1 - t) e, wherever the grid starts and ends."""
    if name == "lms":
        times = low + (high - low) * even
    if (times.diff() < 1e-6).any():
        return
    picture, noise = torch.randn(2, 3, dtype=torch.float64, generator=torch.manual_seed(0))

    def field(x, t):
        return (picture - x) / (1 - t)

    start, end = times[0], times[-1]
    x = SAMPLERS[name](field, start * picture + (1 - start) * noise, times)
    torch.testing.assert_close(x, end * picture + (1 - end) * noise, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", STOCHASTIC)
@settings(deadline=None)
@given(even=even_grids)
def test_a_constant_oracle_is_reached_exactly_through_noise(name, even):
    picture, noise = torch.randn(2, 3, dtype=torch.float64, generator=torch.manual_seed(0))
    added = torch.randn(8, 3, dtype=torch.float64, generator=torch.manual_seed(1))
    seen = []
    x = SAMPLERS[name](
        lambda x, t: (picture - x) / (1 - t), noise, even, noise=lambda i: added[i],
        watch=lambda i, t, x, pair: seen.append(x),
    )  # fmt: skip
    torch.testing.assert_close(x, picture, rtol=0, atol=1e-8)
    straight = even[-2] * picture + (1 - even[-2]) * noise
    assert (seen[-1] - straight).abs().max() > 1e-3, "no noise was added on the way"


def gaussian(mean: float, s: float):
    """The exact velocity of N(mean, s^2), and where it carries noise x0 by time t."""

    def field(x, t):
        variance = (t * s) ** 2 + (1 - t) ** 2
        centred = (x - t * mean) / variance
        return mean + t * s**2 * centred - (1 - t) * centred

    def exact(x0, t):
        return t * mean + math.sqrt((t * s) ** 2 + (1 - t) ** 2) * x0

    return field, exact


@steady
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_samplers_converge_at_their_order_on_a_gaussian_target(name, shift):
    field, exact = gaussian(0.7, 0.5)
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = []
    for steps in (320, 640):  # by lambda one starts at lambda = -inf and pays a logarithm
        x = SAMPLERS[name](field, x0, time_grid(steps, shift))
        errors.append(float((x - exact(x0, 1.0)).abs().max()))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(
            1 if name in ("euler", "ddim") else 2, abs=0.32
        )


@every
def test_samples_of_a_gaussian_target_have_its_moments(name):
    field, _ = gaussian(0.7, 0.5)
    draw = Draw(0, torch.arange(20_000))
    noise = draw.normal("noise", (1,)).double()
    steps = 100 if name in ("ddpm", "euler_ancestral") else 40  # theirs falls short of the spread
    x = SAMPLERS[name](
        field, noise, time_grid(steps), noise=lambda i: draw.normal(f"step {i}", (1,))
    )
    assert float(x.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, rel=0.04)


@every
def test_the_end_is_never_asked_and_evaluations_are_as_many_as_stated(name):
    asked = []

    def field(x, t):
        asked.append(float(t))
        return -x

    x = SAMPLERS[name](field, torch.ones(2), time_grid(5), noise=none)
    assert max(asked) < 1 and min(asked) == 0 and torch.isfinite(x).all()
    assert len(asked) == EVALUATIONS[name]
    assert x.dtype == torch.float32


@every
def test_watch_sees_every_step_and_cancels_by_raising(name):
    seen = []
    SAMPLERS[name](
        lambda x, t: -x, torch.ones(2), time_grid(4),
        watch=lambda i, t, x, pair: seen.append((i, round(t, 6), pair)), noise=none,
    )  # fmt: skip
    assert seen == [(0, 0.0, None), (1, 0.25, None), (2, 0.5, None), (3, 0.75, None)]

    def stop(i, t, x, pair):
        if i == 2:
            raise KeyboardInterrupt

    calls = []
    before = {"heun": 5, "dpmpp_2s": 4, "stochastic_heun": 5, "dpmpp_2s_ancestral": 4,
              "heun_churn": 4, "heun_edm": 4, "langevin": 5}.get(name, 3)  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        SAMPLERS[name](
            lambda x, t: calls.append(t) or -x, torch.ones(2), time_grid(4), watch=stop, noise=none
        )
    # Two whole steps, and what the third asked before it could be seen.
    assert len(calls) == before


def test_ab2_weighs_by_the_actual_steps():
    """For v = a + b t only the first (Euler) step errs, by b dt^2 / 2, on any grid."""
    times = torch.tensor([0.0, 0.1, 0.15, 0.6, 1.0], dtype=torch.float64)
    x = SAMPLERS["ab2"](
        lambda x, t: (2 + 3 * t) * torch.ones_like(x), torch.zeros(1).double(), times
    )
    assert float(x) == pytest.approx(2 + 1.5 - 3 * 0.1**2 / 2, abs=1e-12)


def test_lms_integrates_a_cubic_exactly_once_it_has_four_velocities():
    """Whatever the grid, the error is that of the three steps before, and of those alone."""
    times = torch.tensor([0.0, 0.1, 0.15, 0.3, 0.55, 0.6, 1.0], dtype=torch.float64)
    seen = []
    x = SAMPLERS["lms"](
        lambda x, t: (1 + t - 2 * t**2 + 4 * t**3) * torch.ones_like(x), torch.zeros(1).double(),
        times, watch=lambda i, t, x, pair: seen.append((t, float(x))),
    )  # fmt: skip
    errors = [x - (t + t**2 / 2 - 2 * t**3 / 3 + t**4) for t, x in [*seen, (1.0, float(x))]]
    assert abs(errors[3]) > 1e-3
    assert errors[3:] == pytest.approx([errors[3]] * 4, abs=1e-12)


def test_lms_of_two_velocities_is_ab2():
    x0, times = torch.linspace(-1, 1, 5, dtype=torch.float64), time_grid(6, 3.0)
    two, ab2 = lms(wave, x0, times, order=2), SAMPLERS["ab2"](wave, x0, times)
    torch.testing.assert_close(two, ab2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_that_is_not_there_is_asked_for(name):
    with pytest.raises(InputError, match="adds noise; give noise="):
        SAMPLERS[name](wave, torch.ones(2), time_grid(4))


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s", "unipc", "ddim"])
def test_the_last_step_of_dpmpp_lands_on_the_picture(name):
    picture = torch.tensor([0.3, -0.8])
    x = SAMPLERS[name](lambda x, t: (picture - x) / (1 - t), torch.randn(2), time_grid(7))
    torch.testing.assert_close(x, picture)


def test_a_grid_has_one_time_more_than_steps():
    assert time_grid(1).tolist() == [0, 1]
    assert time_grid(4, 3.0)[2] == pytest.approx(0.25)
    with pytest.raises(InputError, match="steps is 0"):
        time_grid(0)


def test_grids_are_spaced_as_they_are_named():
    assert time_grid(4, grid="quadratic").tolist() == [0, 1 / 16, 1 / 4, 9 / 16, 1]
    shifted = time_grid(4, 3.0, "quadratic")
    assert float(shifted[2]) == pytest.approx(1 / 4 / (1 / 4 + 3 / 4 * 3))
    assert times_of([0.0, 0.3, 1.0]).tolist() == [0, 0.3, 1]
    with pytest.raises(InputError, match="grid cubic is not known; there are uniform, quadratic"):
        time_grid(4, grid="cubic")


SCHEDULES = [name for name in GRIDS if name not in ("uniform", "quadratic", "respaced")]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 18, 500])
def test_schedules_are_whole_walks_on_every_path(name, steps):
    """From 0 to 1, at the same noises on all paths that have them."""
    inside = []
    for kind in get_args(get_args(Objective)[0]):
        path = kind()
        times = time_grid(steps, grid=name, path=path)
        assert len(times) == steps + 1 and times[0] == 0 and times[-1] == 1
        assert (times.diff() > 0).all()
        if kind not in (VEConfig, EDMConfig):  # which end on one of the schedule's own noises
            inside.append(ratio_of(path, times[1:-1]))
    for ratios in inside:
        torch.testing.assert_close(ratios, inside[0], rtol=1e-6, atol=0)


def test_schedules_have_the_ratios_that_are_published():
    path, steps = VEConfig(), 4
    rise = torch.arange(steps + 1).double() / steps
    root = 80 ** (1 / 7) + rise * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    found = path.sigma(time_grid(steps, grid="karras", path=path))
    torch.testing.assert_close(found, root**7)
    # Even in log sigma is even in this path's own t.
    torch.testing.assert_close(time_grid(5, grid="exponential", path=path), time_grid(5))
    poly = path.sigma(time_grid(4, grid="polyexponential", path=path)).log()
    share = (poly - math.log(0.002)) / math.log(80 / 0.002)
    torch.testing.assert_close(share, (1 - rise) ** 1.5)
    even = time_grid(5, grid="vp", path=VPConfig())
    assert (even[1:-1].diff() - even[2] + even[1]).abs().max() < 1e-9


def test_a_schedule_keeps_to_what_the_path_reaches():
    short = VEConfig(sigma_min=0.1, sigma_max=10.0)
    sigmas = short.sigma(time_grid(6, grid="karras", path=short))
    assert sigmas[0] == pytest.approx(10) and sigmas[-1] == pytest.approx(0.1)
    long = VEConfig(sigma_min=1e-4)
    sigmas = long.sigma(time_grid(6, grid="karras", path=long))
    assert sigmas[-2:].tolist() == pytest.approx([0.002, 1e-4])
    with pytest.raises(InputError, match="from 0.002 to 80, the path from 100 to 1000"):
        time_grid(6, grid="karras", path=VEConfig(sigma_min=100.0, sigma_max=1000.0))


def test_a_grid_of_ones_own_rises_from_0_to_1():
    for wrong in (
        [],
        [0.0],
        [0.0, 0.5],
        [0.1, 1.0],
        [0.0, 0.5, 0.5, 1.0],
        [0.0, float("nan"), 1.0],
    ):
        with pytest.raises(InputError, match="give times that rise from 0 to 1"):
            times_of(wrong)


def wave(x, t):
    return x * torch.cos(3 * t) - t**2


def test_ab2_even_keeps_the_weights_of_even_steps():
    """The same as ab2 on an even grid; on another x += dt (1.5 v - 0.5 v_before), as published."""

    x0 = torch.linspace(-1, 1, 5, dtype=torch.float64)
    even, shifted = time_grid(6), time_grid(6, 3.0)
    torch.testing.assert_close(
        SAMPLERS["ab2_even"](wave, x0, even), SAMPLERS["ab2"](wave, x0, even)
    )
    x, before = x0, None
    for t, end in zip(shifted[:-1], shifted[1:], strict=True):
        v = wave(x, t)
        x = x + (end - t) * (v if before is None else 1.5 * v - 0.5 * before)
        before = v
    torch.testing.assert_close(SAMPLERS["ab2_even"](wave, x0, shifted), x)
    assert (SAMPLERS["ab2"](wave, x0, shifted) - x).abs().max() > 1e-4


@every
def test_times_may_be_a_list(name):
    given_list = SAMPLERS[name](wave, torch.ones(2), [0.0, 0.25, 0.5], noise=none)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    assert torch.equal(given_list, SAMPLERS[name](wave, torch.ones(2), times, noise=none))


@every
@pytest.mark.parametrize(
    ("times", "message"),
    [([], "times is 0 numbers; give two or more"), ([0.5], "times is 1 numbers"),
     ([0.0, math.nan, 1.0], "give two or more finite times in a row"),
     ([0.0, math.inf], "finite times"), ([[0.0, 1.0]], r"times is of shape \(1, 2\); give two"),
     ([0.0, 0.5, 0.5, 1.0], "give times that rise"),
     ([0.0, 0.5, 0.4, 1.0], "give times that rise")],
)  # fmt: skip
def test_times_that_are_no_walk_are_refused(name, times, message):
    with pytest.raises(InputError, match=message):
        SAMPLERS[name](wave, torch.ones(2), torch.tensor(times), noise=none)


def test_only_samplers_that_add_noise_need_rising_times():
    for name in SAMPLERS:
        if name in STOCHASTIC:
            with pytest.raises(
                InputError, match="give times that rise, as this sampler adds noise"
            ):
                SAMPLERS[name](wave, torch.ones(2), [0.8, 0.5, 0.2], noise=none)
        else:
            assert SAMPLERS[name](wave, torch.ones(2), [0.8, 0.5, 0.2]).isfinite().all()


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_a_shift_is_above_0_and_finite(shift):
    with pytest.raises(InputError, match="shift is .*; it must be above 0, and finite"):
        time_grid(4, shift)
    with pytest.raises(InputError, match="order is 0; lms joins at least 1 velocity"):
        lms(wave, torch.ones(2), time_grid(4), order=0)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s", "unipc", "ddim"])
def test_a_velocity_with_a_path_and_no_pair_is_walked_on_that_path(name):
    path, picture = GVPConfig(), torch.tensor([0.3, -0.8], dtype=torch.float64)

    class Plain:
        def __init__(self):
            self.path = path

        def __call__(self, x, t):
            pair = Estimate(picture, (x - path.alpha(t) * picture) / path.sigma(t))
            return path.velocity(pair, t)

    x = SAMPLERS[name](Plain(), torch.tensor([1.0, 0.4]).double(), time_grid(7))
    torch.testing.assert_close(x, picture, rtol=0, atol=1e-9)
