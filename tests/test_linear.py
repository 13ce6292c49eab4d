"""The known answers: linear denoisers of a Gaussian, for which they are the best of all."""

import pytest
import torch

from pointillist.draws import Draw
from pointillist.metrics.linear import LinearDenoisers
from pointillist.models import Network
from pointillist.objective import StraightConfig
from pointillist.types import Prediction, Takes
from pointillist.validation import validation_noise, velocity_loss

N, SHAPE = 20_000, (1, 2, 2)
MIX = torch.tensor([[1.0, 0.8, 0.0, 0.0], [0.0, 0.6, 0.0, 0.0], [0, 0, 0.5, 0.3], [0, 0, 0, 0.2]])
DRAW = Draw(0, torch.arange(N))
X = (DRAW.normal("x", (4,)) @ MIX + 0.3).view(N, *SHAPE)
EPS = DRAW.normal("noise", SHAPE)
LINEAR = LinearDenoisers(X)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_loss_is_that_of_the_equation(t):
    """E|x - x_hat|^2 is the trace of C - t^2 C (t^2 C + s^2 I)^-1 C."""
    cov, s2 = (MIX.T @ MIX).double(), (1 - t) ** 2
    rest = cov - t**2 * cov @ torch.linalg.inv(t**2 * cov + s2 * torch.eye(4)) @ cov
    expected = float(rest.trace()) / 4 / s2
    assert LINEAR.velocity_loss(X, EPS, t) == pytest.approx(expected, rel=0.03)
    d = cov.diagonal()
    alone = float((d - t**2 * d**2 / (t**2 * d + s2)).mean()) / s2
    assert LINEAR.velocity_loss(X, EPS, t, full=False) == pytest.approx(alone, rel=0.03)
    assert expected < alone


def test_stronger_noise_is_taken_into_account():
    twice = LINEAR.velocity_loss(X, 2 * EPS, 0.5, noise=2.0)
    unaware = LINEAR.velocity_loss(X, 2 * EPS, 0.5, noise=1.0)
    assert twice < unaware


@pytest.mark.parametrize("predict", ["x", "velocity", "eps"])
def test_evaluation_of_a_network_that_is_the_denoiser_gives_the_same_figure(predict):
    objective = StraightConfig(predict=predict)

    class Wiener(torch.nn.Module):
        takes = Takes()

        class config:
            kind = "wiener"

        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def condition(self, given, size):
            return None

        def forward(self, xt, t, given, context=None):
            t = float(t[0])
            x = LINEAR.picture(xt, t)
            eps = (xt - t * x) / (1 - t)
            return Prediction({"x": x, "velocity": x - eps, "eps": eps}[predict])

    times = (0.1, 0.5, 0.9)
    found = velocity_loss(Network(Wiener()), objective, X[:512], None, times)
    eps = validation_noise(objective, torch.arange(512), SHAPE)
    expected = [LINEAR.velocity_loss(X[:512], eps, t) for t in times]
    assert found == pytest.approx(expected, rel=1e-3)
