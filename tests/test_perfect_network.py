"""A network that is never wrong: walked, validated and read near both ends, on every path."""

import itertools

import pytest
import torch

from pointillist.draws import Draw
from pointillist.guidance import network_field
from pointillist.models import Network
from pointillist.objective import (
    FAINTEST,
    CosineConfig,
    DDPMConfig,
    EDMConfig,
    GVPConfig,
    StraightConfig,
    VEConfig,
    VPConfig,
)
from pointillist.samplers import SAMPLERS, time_grid, times_of
from pointillist.types import Estimate, Given, Prediction
from pointillist.validation import validation_noise, velocity_loss
from tests.test_paths import PAIRS
from tests.test_sampler_orders import Gaussian

PREDICTIONS = ("x", "velocity", "eps")
SECOND = ("heun", "ab2", "lms", "dpmpp_2m", "dpmpp_2s", "unipc")


def time_of(objective, told):
    """The path's own time of what a network is told for one."""
    if objective.kind == "edm":  # log(sigma)/4
        return objective.at(1 / (1 + (4 * told.double()).exp()))
    if objective.kind == "ddpm":  # the index of a step
        return 1 - (told.double() + 1) / objective.steps
    return told.double()


class Perfect:
    """Answers for N(1, 0.5^2) as the objective asks; all answers are off by `error`."""

    def __init__(self, objective, error=0.0):
        self.objective, self.error = objective, error

    def scale(self, size):
        return 1

    def condition(self, given, size):
        return None

    def __call__(self, seen, t, given, context):
        t = time_of(self.objective, t)
        shrunk, _ = self.objective.see(torch.ones_like(seen), t)
        at = t.view(-1, *[1] * (seen.dim() - 1))
        pair = Gaussian(self.objective).estimate(seen / shrunk, at)
        return Prediction(self.objective.answer(pair, t) + self.error)


def walked(objective, name, steps, error=0.0):
    """Mean and variance at the end, exactly: an affine walk takes 0 and 1 where it takes all."""
    start = float(objective.alpha(torch.tensor(0.0).double()))
    x = torch.tensor([start, start + 1]).double().view(2, 1, 1)
    field = network_field(Perfect(objective, error), objective, Given(), (1,))
    end = SAMPLERS[name](field, x, time_grid(steps)).flatten()
    spread = Gaussian(objective).spread(torch.tensor(0.0).double())
    return float(end[0]), float(((end[1] - end[0]) * spread) ** 2)


@pytest.mark.parametrize(
    ("path", "predict", "name"),
    list(
        itertools.product(
            (StraightConfig, GVPConfig, VPConfig, CosineConfig, DDPMConfig), PREDICTIONS, SECOND
        )
    ),
)
def test_it_samples_a_gaussian_whatever_it_predicts(path, predict, name):
    objective = path(predict=predict)
    mean, variance = walked(objective, name, 64)
    assert mean == pytest.approx(1, abs=0.002)
    # What is left is the sampler's own error, not that of the prediction.
    _, ideal = walked(path(predict="x"), name, 64)
    assert variance == pytest.approx(0.25, rel=0.0201)
    assert variance == pytest.approx(ideal, rel=5e-4)


@pytest.mark.parametrize(
    "objective", [*(VEConfig(predict=predict) for predict in PREDICTIONS), EDMConfig()]
)
def test_it_samples_a_gaussian_on_the_exploding_path(objective):
    mean, variance = walked(objective, "dpmpp_2m", 64)
    assert mean == pytest.approx(1, abs=0.01) and variance == pytest.approx(0.25, rel=0.01)


def test_an_error_of_the_noise_is_bounded_at_the_noise_end():
    """At t = 0 an error of .03 may move the picture by 3, and a step of 64 by a twentieth."""
    objective, x = (
        StraightConfig(predict="eps"),
        Draw(0, torch.arange(4)).normal("x", (3,)).double(),
    )
    t = torch.tensor(0.0, dtype=torch.float64)
    off, true = (
        network_field(Perfect(objective, error), objective, Given(), (3,)).estimate(x, t)
        for error in (0.03, 0.0)
    )
    assert float((off.x - true.x).abs().max()) == pytest.approx(0.03 / FAINTEST, rel=0.011)
    step = (objective.velocity(off, t) - objective.velocity(true, t)).abs().max() / 64
    assert float(step) < 0.05
    # The pair is one of the state that was asked about, at the time that was asked about.
    torch.testing.assert_close(objective.alpha(t) * off.x + objective.sigma(t) * off.eps, x)


def test_the_clamp_of_training_does_not_act_while_sampling():
    loose = walked(StraightConfig(predict="eps"), "heun", 16)
    assert loose == walked(StraightConfig(predict="eps", clamp=0.3), "heun", 16)
    tight = walked(StraightConfig(predict="eps", sampling_clamp=0.3), "heun", 16)
    assert abs(tight[1] / loose[1] - 1) > 0.1


@pytest.mark.parametrize(("path", "predict"), PAIRS)
def test_it_has_no_validation_loss(path, predict):
    objective = path(predict=predict)
    x, size = Draw(3, torch.arange(6)).normal("x", (1, 4)), (1, 4)
    eps = validation_noise(objective, torch.arange(6), size)

    class Knowing(Network):
        device = torch.device("cpu")

        def __init__(self):
            pass

        def condition(self, given, size, asked=None):
            return None

        def __call__(self, xt, t, given, context=None, taps=()):
            t = time_of(objective, t)
            return Prediction(objective.answer(Estimate(x, eps), t))

    times = (0.03, 0.1, 0.5, 0.9, 0.97)
    if objective.kind == "vp" and predict == "eps":
        times = times[1:]  # alpha is below FAINTEST before t = 0.04
    scale = [float(objective.sigma_rate(torch.tensor(t)).abs()) + 1 for t in times]
    for loss, size in zip(velocity_loss(Knowing(), objective, x, None, times), scale, strict=True):
        assert loss < (2e-4 * size) ** 2


@pytest.mark.parametrize(("path", "predict"), PAIRS)
def test_times_that_float32_takes_for_the_end_are_read_in_float64(path, predict):
    objective, x = path(predict=predict), Draw(0, torch.arange(2)).normal("x", (3,))

    class Blunt:
        def scale(self, size):
            return 1

        def condition(self, given, size):
            return None

        def __call__(self, seen, t, given, context):
            return Prediction(torch.full_like(seen, 0.5))

    field = network_field(Blunt(), objective, Given(), (3,))
    for name in SAMPLERS:
        end = SAMPLERS[name](
            field, x, times_of([0.0, 0.5, 0.99999999, 1.0]), noise=lambda i: torch.zeros(())
        )
        assert torch.isfinite(end).all() and end.dtype == torch.float32
        if predict == "x" and path is StraightConfig:
            torch.testing.assert_close(end, torch.full_like(end, 0.5))
