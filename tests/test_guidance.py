"""Guidance is a closure from field to field, and runs no pass in vain."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.guidance import Count, Field, GuidanceConfig, classifier_free, network_field
from pointillist.objective import StraightConfig
from pointillist.samplers import euler, heun, time_grid
from pointillist.types import Estimate, Given, InputError, Prediction

PATH = StraightConfig(predict="velocity")
X = torch.randn(2, 3, 4, 4, generator=torch.manual_seed(0))


class Constant:
    """A field with one velocity, counting how often it is asked."""

    def __init__(self, v: float) -> None:
        self.v, self.asked = v, []

    def field(self) -> Field:
        def estimate(x, t):
            self.asked.append(float(t))
            return Estimate(x + (1 - t) * self.v, x - t * self.v)

        return Field(estimate, PATH)


@settings(deadline=None)  # the first call of torch takes its time
@given(w=st.floats(-3, 8), t=st.floats(0.01, 0.99))
def test_guided_velocity_is_the_weighted_difference(w, t):
    toward, away = Constant(2.0), Constant(0.5)
    guided = classifier_free(toward.field(), away.field(), GuidanceConfig(scale=w))
    v = guided(X, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(v, torch.full_like(X, 0.5 + w * 1.5), rtol=1e-4, atol=1e-4)


def test_scale_one_is_no_guidance_and_runs_no_reference():
    toward, away = Constant(2.0), Constant(0.5)
    guided = classifier_free(toward.field(), away.field(), GuidanceConfig(scale=1.0))
    assert torch.equal(euler(guided, X, time_grid(4)), euler(toward.field(), X, time_grid(4)))
    assert not away.asked


def test_scale_zero_runs_the_reference_alone():
    toward, away = Constant(2.0), Constant(0.5)
    guided = classifier_free(toward.field(), away.field(), GuidanceConfig(scale=0.0))
    euler(guided, X, time_grid(4))
    assert not toward.asked and len(away.asked) == 4


def test_outside_the_interval_the_reference_is_not_run():
    toward, away = Constant(2.0), Constant(0.5)
    guidance = GuidanceConfig(scale=3.0, interval=(0.25, 0.75))
    heun(classifier_free(toward.field(), away.field(), guidance), X, time_grid(8))
    assert set(away.asked) == {0.375, 0.5, 0.625}
    assert len(toward.asked) == 15
    # On a grid of ten the end 0.3 is 0.30000000000000004, and still an end.
    ends = [float(t) for t in time_grid(10)[[3, 6]]]
    assert ends[0] > 0.3
    weights = [GuidanceConfig(scale=3.0, interval=(0.3, 0.6)).weight(t) for t in ends]
    assert weights == [1, 1]
    assert GuidanceConfig(scale=3.0, interval=(0.3, 0.6)).weight(0.3 + 1e-6) == 3
    assert GuidanceConfig(scale=3.0, interval=(0.0, 0.75)).weight(0.0) == 3.0


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_must_rise_and_lie_in_the_unit(interval):
    with pytest.raises(InputError, match="guidance.interval"):
        GuidanceConfig(interval=interval)


def test_a_condition_is_encoded_once_for_all_steps():
    class Network:
        encoded = calls = 0

        def scale(self, size):
            return 1

        def condition(self, given, size):
            self.encoded += 1
            return "context"

        def __call__(self, xt, t, given, context):
            assert context == "context" and t.dtype == torch.float32 and t.shape == (2,)
            self.calls += 1
            return Prediction(torch.zeros_like(xt))

    network, count = Network(), Count()
    heun(network_field(network, PATH, Given(), (4, 4), count), X, time_grid(5))
    assert network.encoded == 1 and network.calls == count.nfe == 9
