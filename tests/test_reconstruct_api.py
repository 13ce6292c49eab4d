"""Reconstruct and upscale from Python: posteriors of arrays, and of any measurement."""

import numpy as np
import pytest
import torch

from pointillist.consistent import (
    DPSConfig,
    MomentsConfig,
    NoConsistency,
    ProjectionConfig,
    PseudoInverseConfig,
    RepaintConfig,
)
from pointillist.known import protocol_mask
from pointillist.layers.observations import to_points
from pointillist.measure import Blur, Box, Chain
from pointillist.reconstruct import Question, answers
from pointillist.request import Ask
from pointillist.types import Given, InputError
from tests.awake import awake
from tests.reconstruct_case import HINTS, SIZE, as_state, colours


@pytest.fixture(scope="module")
def model():
    return awake(*HINTS, "sample.steps=2")


@pytest.fixture(scope="module")
def unshown():
    return awake("sample.steps=2")


X = as_state(colours())[0]
MASK = protocol_mask(0, (SIZE, SIZE), 0.3)


def test_every_form_of_the_same_values_gives_the_same_draws(model):
    asked = {"draws": 2, "seed": 4}
    whole = model.reconstruct(X, MASK, **asked)
    assert whole.draws.shape == (2, 3, SIZE, SIZE) and whole.hidden.shape == (1, SIZE, SIZE)
    levels = torch.from_numpy(colours()).permute(2, 0, 1)
    gaps = torch.where(MASK, X, torch.nan)
    at, value, _ = to_points(X[None], MASK[None, None])
    forms = {
        "8-bit": model.reconstruct(levels, MASK, **asked),
        "gaps": model.reconstruct(gaps, **asked),
        "with a channel": model.reconstruct(X, MASK[None], **asked),
        "numbers": model.reconstruct(X, MASK.int(), **asked),
        "points": model.reconstruct(value[0], at=at[0], **asked),
        "array": model.reconstruct(X.numpy(), MASK.numpy(), **asked),
        "8-bit array": model.reconstruct(levels.numpy(), MASK.numpy(), **asked),
    }
    for name, post in forms.items():
        draws = torch.as_tensor(post.draws)
        torch.testing.assert_close(draws, whole.draws, rtol=1e-5, atol=1e-5, msg=name)


def test_numpy_in_numpy_out(model):
    post = model.reconstruct(X.numpy(), MASK.numpy(), draws=9)
    twin = model.reconstruct(X, MASK, draws=9)
    low, high = post.interval(0.8)
    theirs = twin.interval(0.8)
    pairs = [(post.mean, twin.mean), (post.std, twin.std), (post.draws, twin.draws),
             (post.quantile(0.3), twin.quantile(0.3)), (low, theirs[0]), (high, theirs[1]),
             (post.hidden, twin.hidden)]  # fmt: skip
    for ours, other in pairs:
        assert isinstance(ours, np.ndarray) and isinstance(other, torch.Tensor)
        assert ours.dtype == other.numpy().dtype and (ours == other.numpy()).all()
    # Sums in float64 depend on where the numbers lie in memory, by the last bit.
    assert post.crps(X.numpy()) == pytest.approx(twin.crps(X), rel=1e-12)
    assert post.coverage(X.numpy(), 0.8) == twin.coverage(X, 0.8)
    assert post.count == 9 and post.levels == twin.levels
    several = model.reconstruct(np.stack((X, X)), MASK.numpy(), draws=1)
    assert isinstance(several.mean, np.ndarray) and several.mean.shape == (2, 3, SIZE, SIZE)
    big = model.upscale(X.numpy(), scale=2)
    assert isinstance(big, np.ndarray) and big.shape == (3, 64, 64)
    assert isinstance(model.upscale(X, scale=2), torch.Tensor)


def test_several_pictures_are_answered_as_each_alone(model):
    both = torch.stack((X, as_state(colours(seed=1))[0]))
    masks = torch.stack((MASK, protocol_mask(1, (SIZE, SIZE), 0.3)))
    post = model.reconstruct(both, masks, draws=3)
    assert post.draws.shape == (3, 2, 3, SIZE, SIZE)
    known = masks[:, None].expand_as(both)
    assert torch.equal(post.mean[known], both[known])
    assert (post.draws[:, known] == both[known]).all()
    alone = model.reconstruct(both[0], masks[0], draws=3)
    torch.testing.assert_close(post.draws[:, 0], alone.draws, rtol=1e-5, atol=1e-5)


def test_no_label_is_no_class_rather_than_the_first_by_every_way(model):
    known = Given(seen=X[None], mask=MASK[None, None])
    question = Question("a", known.seen, known.mask)
    ways = {
        "reconstruct": lambda **ask: model.reconstruct(X, MASK, draws=1, seed=1, **ask).draws[0],
        "posterior": lambda **ask: model.posterior(known, draws=1, seed=1, **ask).draws[0, 0],
        "answers": lambda **ask: next(answers(model, [question], 1, seed=1, **ask)).draws[0, 0],
    }
    for name, way in ways.items():
        none, said, first = way(), way(label=-1), way(label=0)
        assert torch.equal(none, said) and not torch.equal(none, first), name
    upscaled = [model.upscale(X, scale=2, **ask) for ask in ({}, {"label": -1}, {"label": 0})]
    assert torch.equal(*upscaled[:2]) and not torch.equal(*upscaled[1:])
    in_turn = model.sample(1, known=known, seed=1)
    assert torch.equal(in_turn, model.sample(1, label=0, known=known, seed=1))


def test_guidance_costs_nothing_where_no_label_is_known(model):
    cost = [
        model.answer(Ask(count=1, label=label, guidance=2.0, steps=4, sampler="euler")).nfe
        for label in (-1, 0)
    ]
    assert cost == [4, 8]
    free, guided = (
        model.reconstruct(X, MASK, draws=1, guidance=guidance).draws for guidance in (1.0, 2.0)
    )
    assert torch.equal(free, guided)


@pytest.mark.parametrize(
    ("ask", "message"),
    [({"values": X * torch.nan}, "nothing is known"),
     ({"values": torch.where(MASK, torch.nan, X), "mask": MASK},
      r"values of picture 0 are NaN at \(.*\), where the mask says that they are known; make"),
     ({"values": X + torch.inf}, "seen holds inf; known values run from -1 to 1"),
     ({"values": X * 200, "mask": MASK}, "known values run from -1 to 1"),
     ({"values": X, "mask": MASK * 0.5}, "mask holds 0.5; it is 0 or 1"),
     ({"values": X, "mask": MASK[:8]}, "mask lies on 8x32 cells, the pictures have 32x32"),
     ({"values": X, "mask": MASK & False}, "nothing is known"),
     ({"values": X[0], "mask": MASK}, "values has shape 32x32; give 3 axes for one picture"),
     ({"values": X[:1], "mask": MASK}, "hints have 1 channels, the pictures 3"),
     ({"values": None}, "values is None"), ({"values": "red"}, "values is a str; give a tensor"),
     ({"values": X[:, 0], "at": MASK, "mask": MASK}, "mask is given with at"),
     ({"values": X[:, 0], "at": torch.full((SIZE, 2), 1.5)}, "outside of the picture"),
     ({"values": X[:, 0], "at": torch.zeros(3, 2)}, "at has 3 points, value 32"),
     ({"values": X, "mask": MASK, "draws": 0}, "draws is 0; it is 1 or more"),
     ({"values": X, "mask": MASK, "size": (48, 56)}, "same aspect ratio"),
     ({"values": X, "mask": MASK, "size": 64}, "size is 64; give one whole number an axis"),
     ({"values": X, "mask": MASK, "noise": -1.0}, "noise is -1.0; ")],
)  # fmt: skip
def test_what_is_no_observation_is_one_sentence(model, ask, message):
    with pytest.raises(InputError, match=message) as caught:
        model.reconstruct(**{"draws": 1, **ask})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [({}, "give either size or scale"), ({"size": (64, 64), "scale": 2}, "give either size or"),
     ({"scale": 1}, "scale is 1"),
     ({"size": (64,)}, "size is 64, the picture has 32x32; give as many axes"),
     ({"size": (32, 32)}, "ask for a finer grid"), ({"size": (34, 34)}, "patch size 4")],
)  # fmt: skip
def test_a_size_that_is_not_finer_is_one_sentence(model, ask, message):
    with pytest.raises(InputError, match=message):
        model.upscale(X, **ask)


def means_over(big: torch.Tensor, n: int) -> torch.Tensor:
    """Means over n x n equal parts, whose rims may cut through cells: each cell is 2 x 2 of its."""
    fine = big.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return fine.unflatten(2, (n, -1)).unflatten(1, (n, -1)).mean((2, 4))


def test_means_over_the_boxes_of_an_enlarged_picture_are_the_picture(model):
    for asked in ({"scale": 2}, {"size": (64, 64)}, {"size": (48, 48)}, {"scale": 2, "draws": 3}):
        big = model.upscale(X, **asked)
        torch.testing.assert_close(means_over(big, SIZE), X, rtol=0, atol=2e-5)


def test_a_field_enlarges_by_any_factor_that_its_patches_reach():
    field = awake("model.kind=pixnerd", "model.width=32", "model.depth=1",
                  "model.heads=2", "model.encoder.kind=grid", "task.kind=upscale",
                  "sample.steps=2")  # fmt: skip
    picture = as_state(colours(32, 32))[0]
    for size in ((48, 48), (64, 64)):
        big = field.upscale(picture, size=size)
        assert big.shape == (3, *size)
        torch.testing.assert_close(means_over(big, 32), picture, rtol=0, atol=2e-5)


EXACT = (ProjectionConfig(), PseudoInverseConfig(), DPSConfig(), MomentsConfig(iterations=2),
         RepaintConfig())  # fmt: skip
MEASURES = {"means": Box((2, 2)), "blurred means": Chain(Blur(1.0), Box((4, 4)))}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.kind)
def test_a_measurement_that_no_network_was_shown_is_met_by_every_method(unshown, method, name):
    measure = MEASURES[name]
    y = measure(X[None])
    post = unshown.posterior((measure, y), draws=2, consistency=method, label=0)
    assert post.draws.shape == (2, 1, 3, SIZE, SIZE) and post.hidden is None
    assert post.draws.isfinite().all() and post.std.max() > 0
    torch.testing.assert_close(measure(post.draws[:, 0]), y.expand(2, -1, -1, -1),
                               rtol=0, atol=1e-3)  # fmt: skip
    same = unshown.sample(1, label=0, known=(measure, y), consistency=method)
    torch.testing.assert_close(same, post.draws[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.kind)
def test_pixels_that_no_network_was_shown_come_back_by_every_method(unshown, method):
    post = unshown.reconstruct(X, MASK, draws=2, consistency=method)
    torch.testing.assert_close(post.draws[:, :, MASK], X[:, MASK].expand(2, -1, -1),
                               rtol=0, atol=1e-5)  # fmt: skip


def test_without_consistency_a_measurement_is_shown_only(model, unshown):
    free = model.reconstruct(X, MASK, draws=1, consistency=NoConsistency())
    assert (free.draws[0][:, MASK] - X[:, MASK]).abs().max() > 1e-3
    y = MEASURES["means"](X[None])
    ignored = unshown.posterior((MEASURES["means"], y), draws=1, consistency=NoConsistency())
    assert torch.equal(ignored.draws[0], unshown.sample(1, label=-1))


def test_the_more_noise_is_stated_the_further_known_pixels_may_go(model):
    apart = [
        (model.reconstruct(X, MASK, draws=2, noise=level).mean - X)[:, MASK].abs().mean()
        for level in (0.0, 0.1, 0.5)
    ]
    assert apart[0] == 0 and 0 < apart[1] < apart[2]


@pytest.mark.parametrize(
    ("known", "ask", "message"),
    [((Box((2, 2)), torch.zeros(1, 3, 5, 5)), {}, "y has 3x5x5 values a picture, its measure"),
     ((Box((2, 2)), torch.zeros(1, 3, 16, 16) * torch.nan), {}, "give finite values"),
     ((Box((3, 3)), torch.zeros(1, 3, 5, 5)), {}, r"factors is \[3, 3\], the picture has 32x32"),
     ((Box((2, 2)), torch.zeros(1, 3, 16, 16)), {"size": (32, 32, 32)}, "factors|axes"),
     (Given(seen=X[None], mask=MASK[None, None], at=torch.zeros(1, 1, 2),
            value=torch.zeros(1, 3, 1)), {"size": (64, 64)}, "points are given too")],
)  # fmt: skip
def test_what_contradicts_itself_is_one_sentence(unshown, known, ask, message):
    with pytest.raises(InputError, match=message):
        unshown.posterior(known, draws=1, **ask)
    with pytest.raises(InputError, match="noise is 0.1, but nothing is known"):
        unshown.sample(1, noise=0.1)
