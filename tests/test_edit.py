"""Pictures changed from part of the way to noise: known answers, limits, what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pointillist.draws import Draw
from pointillist.objective import GVPConfig, StraightConfig
from pointillist.run import Run
from pointillist.sample import Trained, untrained
from pointillist.samplers import SAMPLERS, STOCHASTIC
from pointillist.types import Estimate, InputError, Prediction, Spec, Takes, grid_axes

MEAN, SPREAD = 0.2, 0.5
SPEC = Spec(channels=1, axes=grid_axes((4, 4)))


class Gaussian(nn.Module):
    """The perfect network for pictures of independent values N(MEAN, SPREAD^2)."""

    takes = Takes(axes=(1, 2, 3))

    def __init__(self, objective):
        super().__init__()
        self.config, self.spec, self.objective = Run.load("debug").model, SPEC, objective
        self.nothing = nn.Parameter(torch.zeros(1))

    def condition(self, given, size):
        return None

    def forward(self, xt, t, given, context=None):
        t = t.view(-1, 1, 1, 1).double()
        a, s = self.objective.alpha(t), self.objective.sigma(t)
        x = MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (xt - a * MEAN)
        eps = s / (a**2 * SPREAD**2 + s**2) * (xt - a * MEAN)
        answer = self.objective.velocity(Estimate(x, eps), t.flatten())
        return Prediction(answer.float())


def perfect(path) -> Trained:
    import dataclasses

    objective = path(predict="velocity")
    run = dataclasses.replace(Run.load("debug"), objective=objective)
    return Trained(run, SPEC, Gaussian(objective), torch.device("cpu"))


def picture(b: int = 3) -> torch.Tensor:
    return Draw(1, torch.arange(b)).normal("picture", (1, 4, 4)).clamp(-1, 1)


@pytest.mark.parametrize("path", [StraightConfig, GVPConfig])
@pytest.mark.parametrize("strength", [0.2, 0.6, 0.9])
def test_the_answer_of_a_gaussian_is_known_for_every_picture_and_noise(path, strength):
    trained, x = perfect(path), picture()
    objective, t = trained.run.objective, torch.tensor(1 - strength).double()
    a, s = float(objective.alpha(t)), float(objective.sigma(t))
    eps = objective.noise(Draw(4, torch.arange(3)), (1, 4, 4), "sample")
    # The flow of a Gaussian moves every deviation in proportion to the spread.
    deviation = (a * x + s * eps - a * MEAN) / math.sqrt(a**2 * SPREAD**2 + s**2)
    found = trained.edit(x, strength=strength, seed=4, sampler="heun", steps=200)
    torch.testing.assert_close(found, (MEAN + SPREAD * deviation).float(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("path", [StraightConfig, GVPConfig])
def test_at_full_strength_it_is_sample(path):
    trained, x = perfect(path), picture()
    found = trained.edit(x, strength=1.0, seed=2, steps=6)
    assert torch.equal(found, trained.sample(3, seed=2, steps=6))


def test_with_little_strength_the_picture_stays():
    trained, x = perfect(StraightConfig), picture()
    far = [(trained.edit(x, strength=s, steps=40, seed=1) - x).abs().mean() for s in
           (1e-4, 0.05, 0.3, 0.8)]  # fmt: skip
    assert far[0] < 1e-3 and far == sorted(far)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_edits(sampler):
    x = picture(2)
    trained = perfect(StraightConfig)
    found = trained.edit(x, strength=0.5, sampler=sampler, steps=60, seed=3)
    assert found.shape == x.shape and found.isfinite().all()
    many = trained.edit(torch.full((400, 1, 4, 4), 0.8), strength=0.5, sampler=sampler, steps=60,
                        batch=400)  # fmt: skip
    # All keep the marginals of the walk: from there its end is as wide for all, to within 10 %.
    ratio = SPREAD / math.sqrt(0.25 * SPREAD**2 + 0.25)
    if sampler not in STOCHASTIC:
        assert float(many.mean()) == pytest.approx(MEAN + ratio * 0.5 * (0.8 - MEAN), abs=0.02)
        assert float(many.std()) == pytest.approx(ratio * 0.5, rel=0.05)


def test_fewer_steps_are_left_of_fewer_evaluations():
    trained, seen = perfect(StraightConfig), []

    def watch(i, t, x, estimate):
        seen.append(t)

    from pointillist.request import Start, ask_of

    ask = ask_of({"count": 1, "steps": 10, "sampler": "euler"})
    trained.answer(ask, watch, start=Start(picture(1), 0.45))
    assert seen == pytest.approx([0.45, 0.5, 0.6, 0.7, 0.8, 0.9])
    seen.clear()
    trained.answer(ask, watch, start=Start(picture(1), 0.6))  # a time of the grid itself
    assert seen == pytest.approx([0.6, 0.7, 0.8, 0.9])


def test_one_picture_or_several_of_any_kind_and_size():
    trained = perfect(StraightConfig)
    levels = np.random.default_rng(0).integers(0, 256, (1, 6, 5), dtype=np.uint8)
    one = trained.edit(levels, strength=0.5, steps=4)
    assert isinstance(one, np.ndarray) and one.shape == (1, 6, 5)
    same = trained.edit(torch.from_numpy(levels)[None] / 127.5 - 1, strength=0.5, steps=4)
    np.testing.assert_allclose(one, same[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan"), True, "half"])
def test_a_strength_lies_above_0_and_up_to_1(strength):
    with pytest.raises(
        InputError, match="strength is .*; it lies in .1e-6, 1., 1 begins with noise"
    ):
        perfect(StraightConfig).edit(picture(), strength=strength)


@pytest.mark.parametrize(
    ("image", "ask", "text"),
    [(torch.zeros(3, 4, 4), {}, "the picture has 3 channels, the run 1; give as many"),
     (torch.full((1, 4, 4), math.nan), {}, "the picture has NaN; edit takes whole ones"),
     (torch.zeros(1, 4, 4), {"size": (8, 8)}, "size is given, but edit takes that of the pictures"),
     (torch.zeros(1, 4, 4), {"count": 4}, "count is given, but edit takes"),
     (torch.zeros(1, 4, 4), {"prompt": "a"}, "prompt is 'a', but this run reads no captions")],
)  # fmt: skip
def test_what_cannot_be_edited_is_refused(image, ask, text):
    with pytest.raises(InputError, match=text):
        perfect(StraightConfig).edit(image, **ask)


def test_a_class_edits_too_and_without_one_none_is_told():
    run = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2")
    trained = untrained(run, run.promise(), "cpu")
    with torch.no_grad():
        for p in trained.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    x = torch.zeros(1, 3, 32, 32)
    told, other, unsaid = (trained.edit(x, steps=2, label=label) for label in (1, 2, None))
    assert not torch.equal(told, other) and not torch.equal(told, unsaid)
    assert torch.equal(unsaid, trained.edit(x, steps=2, label=-1))
