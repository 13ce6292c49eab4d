"""Rules of published samplers that miss an exact answer, written out, beside ours that reach it.

Their stored trajectories are walks of networks, but for PixelHDM's, which its rule repeats here.
"""

import math

import pytest
import torch

from pointillist.guidance import GuidanceConfig
from pointillist.objective import StraightConfig
from pointillist.samplers import SAMPLERS, time_grid
from tests.parity_case import FOLDER, NONE, Case
from tests.test_sampler_orders import Gaussian, moments

FIELD = Gaussian(StraightConfig())
X0 = torch.linspace(-2, 2, 5, dtype=torch.float64)


def exact(times):
    return FIELD.exact(X0, times[0], times[-1])


def pixelhdm(field, x, times):
    """`dpm_pp`: what multiplies the picture is what belongs to the noise, (1-t') - (1-t) t'/t."""
    before, h_before, walk = None, math.nan, [x]
    for t, end in zip(times[:-1], times[1:], strict=True):
        picture, h = x + (1 - t) * field(x, t), float(torch.logit(end) - torch.logit(t))
        blend = picture
        if before is not None:
            r = h_before / h
            blend = picture + r / (1 + r) * (picture - before)
        x = end / t * x + ((1 - end) - (1 - t) * end / t) * blend
        before, h_before = picture, h
        walk.append(x)
    return torch.stack(walk)


@pytest.mark.skipif(not (FOLDER / "pixelhdm_sampler_dpm_pp").exists(), reason=NONE.kwargs["reason"])
def test_the_rule_of_pixelhdm_is_the_published_one():
    case = Case(FOLDER / "pixelhdm_sampler_dpm_pp")
    io, w, s2 = case.io, case.constructor["guidance_scale"], case.constructor["toy"]["s"] ** 2

    def field(z, t):
        means = (io[f"{name}text_embed"].mean((1, 2)).view(-1, 1, 1, 1) for name in ("", "null_"))
        slope = (t * s2 - (1 - t)) / (t**2 * s2 + (1 - t) ** 2)
        toward, away = (mean + slope * (z - t * mean) for mean in means)
        return away + w * (toward - away)

    case.match(
        "traj", pixelhdm(field, io["z_0"], io["timesteps"]), 1e-5 * float(io["out"].abs().max())
    )


@pytest.mark.parametrize("steps", [8, 64, 512])
def test_pixelhdm_dpm_pp_goes_astray_at_any_number_of_steps_and_stops_short(steps):
    times = torch.linspace(0.05, 0.95, steps + 1, dtype=torch.float64)
    assert (pixelhdm(FIELD, X0, times)[-1] - exact(times)).abs().max() > 1
    assert (SAMPLERS["dpmpp_2m"](FIELD, X0, times) - exact(times)).abs().max() < 3 / steps**1.5
    whole = time_grid(steps)
    assert (SAMPLERS["dpmpp_2m"](FIELD, X0, whole) - exact(whole)).abs().max() < 3 / steps**1.5


def variance(walk, steps):
    """At the end of an affine walk, from the weights of what it draws."""
    x = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x[1] = 1

    def noise(i):
        one = torch.zeros_like(x)
        one[2 + i] = 1
        return one

    found = walk(x, noise)[:, 0]
    return float((found[1:] - found[0]).square().sum())


def asf_sde(steps, temperature=0.5):
    """Euler, then noise of temperature sqrt(dt) (1 - t), not in the last five steps, no score."""
    times = time_grid(steps)

    def walk(x, noise):
        for i, (t, end) in enumerate(zip(times[:-1], times[1:], strict=True)):
            x = x + (end - t) * FIELD(x, t)
            if i < steps - 5:
                x = x + temperature * (end - t).sqrt() * (1 - t) * noise(i)
        return x

    return variance(walk, steps)


def asf_ddim(steps, eta=0.3):
    """Euler on a quadratic grid, then noise of eta sqrt(dt) but in the last step, no score."""
    times = time_grid(steps, grid="quadratic")

    def walk(x, noise):
        for i, (t, end) in enumerate(zip(times[:-1], times[1:], strict=True)):
            x = x + (end - t) * FIELD(x, t)
            if i < steps - 1:
                x = x + eta * (end - t).sqrt() * noise(i)
        return x

    return variance(walk, steps)


@pytest.mark.parametrize("published", [asf_sde, asf_ddim])
def test_noise_without_its_score_widens_the_samples_at_any_number_of_steps(published):
    """The target's variance is 0.25; more steps do not bring theirs nearer to it."""
    theirs = [abs(published(steps) / 0.25 - 1) for steps in (64, 256, 1024)]
    assert min(theirs) > 0.1 and theirs[0] < theirs[1] < theirs[2]
    for name in ("euler_maruyama", "stochastic_heun"):
        ours = [abs(moments(name, StraightConfig(), steps)[1] / 0.25 - 1) for steps in (64, 256)]
        assert ours[0] < 0.015 and ours[1] < 0.004


def pixnerd_heun(field, x, times):
    """The corrector's velocity is the next step's predictor; the last step goes by it alone."""
    ahead = None
    for i, (t, end) in enumerate(zip(times[:-1], times[1:], strict=True)):
        v = field(x, t) if ahead is None else ahead
        if i < len(times) - 2:
            ahead = field(x + (end - t) * v, end)
            v = (v + ahead) / 2
        x = x + (end - t) * v
    return x


def flow(mean, x, t, end):
    """Where the probability flow of N(mean, 0.5^2) carries x from t to end."""
    field = Gaussian(StraightConfig())
    field.mean = mean
    return field.exact(x, t, end)


@pytest.mark.parametrize("steps", [40, 160])
def test_pixnerd_heun_guides_outside_of_the_interval_too(steps):
    """Between normal distributions of equal spread guidance at w is the flow of another mean.

    So with w = 2 in (0.1, 0.6) and means 0 and 1 it is known where a walk ends. Re-using the
    corrector's velocity costs nothing here: its error at a constant weight is as small as Heun's.
    """
    guidance = GuidanceConfig(scale=2.0, interval=(0.1, 0.6))
    toward, away = Gaussian(StraightConfig()), Gaussian(StraightConfig())
    away.mean = 0.0
    cuts = [torch.tensor(t, dtype=torch.float64) for t in (0.0, 0.1, 0.6, 1.0)]
    known = X0
    for mean, t, end in zip((1.0, 2.0, 1.0), cuts[:-1], cuts[1:], strict=True):
        known = flow(mean, known, t, end)

    def field(weight):
        return lambda x, t: away(x, t) + weight(float(t)) * (toward(x, t) - away(x, t))

    times = time_grid(steps)
    ours = SAMPLERS["heun"](field(guidance.weight), X0, times)
    theirs = pixnerd_heun(field(lambda t: guidance.scale), X0, times)
    assert (theirs - known).abs().max() > 0.2
    assert (ours - known).abs().max() < 2 / steps
    everywhere = flow(2.0, X0, cuts[0], cuts[-1])
    assert (theirs - everywhere).abs().max() < 20 / steps**2
