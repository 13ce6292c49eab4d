"""Rules that combine two estimates, and weights over time: each against its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.guidance import (
    APGConfig,
    AutoConfig,
    CosineSchedule,
    Field,
    GuidanceConfig,
    LinearSchedule,
    ListSchedule,
    PowerCosineSchedule,
    classifier_free,
    combined,
    plain,
    projected,
    rescaled,
)
from pointillist.objective import StraightConfig
from pointillist.samplers import heun, time_grid
from pointillist.types import Estimate, InputError

PATH = StraightConfig()
calm = settings(deadline=None, max_examples=40)  # the first call of torch takes its time


def t_of(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def pair(x: torch.Tensor, state: torch.Tensor, t: float) -> Estimate:
    """The estimate of a state whose picture is x."""
    return Estimate(x, (state - t * x) / (1 - t))


def three(seed: int = 0, shape: tuple[int, ...] = (3, 3, 6, 5), t: float = 0.4):
    """A state, and two estimates of it."""
    state, one, two = torch.randn(3, *shape, generator=torch.manual_seed(seed)).double()
    return state, pair(one, state, t), pair(two + 0.7 * one, state, t)


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)


# Weights over time.


def weights(schedule, scale: float = 3.0) -> list[float]:
    guidance = GuidanceConfig(scale=scale, schedule=schedule)
    return [guidance.weight(t) for t in (0.0, 0.25, 0.5, 0.75)]


def test_schedules_have_the_values_of_their_formulas():
    assert weights(LinearSchedule()) == pytest.approx([1, 1.5, 2, 2.5])
    assert weights(LinearSchedule(start=2.0, end=0.0)) == pytest.approx([5, 4, 3, 2])
    h = math.sqrt(0.5)
    assert weights(CosineSchedule()) == pytest.approx([1, 2 - h, 2, 2 + h])
    assert weights(CosineSchedule(start=1.0, end=0.0)) == pytest.approx([3, 2 + h, 2, 2 - h])
    assert weights(ListSchedule(factors=(1.0, 0.0, 2.0))) == pytest.approx([3, 2, 1, 3])
    assert weights(PowerCosineSchedule(power=1.0)) == pytest.approx(weights(CosineSchedule()))


@calm
@given(index=st.integers(0, 999), w=st.floats(1.1, 8))
def test_the_power_cosine_is_that_of_diffit(index, w):
    """Written with its own clock: index T = 1000 is noise, m = 4."""
    phi = (1 - index / 1000) ** 4 * math.pi
    published = (w - 1) * (1 - math.cos(phi)) / 2 + 1
    ours = GuidanceConfig(scale=w, schedule=PowerCosineSchedule())
    t = 1 - index / 1000
    assert ours.weight(t) == pytest.approx(published if t < 1 else 1.0)


def test_the_interval_holds_for_every_schedule():
    guidance = GuidanceConfig(scale=3.0, interval=(0.2, 0.8), schedule=LinearSchedule())
    assert [guidance.weight(t) for t in (0.1, 0.2, 0.8, 0.9)] == [1, 1, 1, 1]
    assert guidance.weight(0.5) == pytest.approx(2)


@calm
@given(t=st.floats(0, 0.999))
def test_scale_one_is_weight_one_at_every_time(t):
    for schedule in (LinearSchedule(start=3.0), CosineSchedule(), ListSchedule()):
        assert GuidanceConfig(scale=1.0, schedule=schedule).weight(t) == 1


# Rescale.


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_restores_its_share_of_the_deviation(phi):
    state, toward, away = three()
    t = t_of(0.4)
    guided = plain(toward, away, 4.0, t)
    found = rescaled(plain, PATH, phi)(toward, away, 4.0, t)
    before, after = flat(toward.x).std(1), flat(guided.x).std(1)
    torch.testing.assert_close(flat(found.x).std(1), phi * before + (1 - phi) * after)
    factor = (phi * before / after + 1 - phi).view(-1, 1, 1, 1)
    torch.testing.assert_close(found.x, factor * guided.x)  # Lin et al., Eq. 15 and 16
    torch.testing.assert_close(PATH.mix(found.x, found.eps, t.expand(3)), state)


def test_a_flat_picture_is_left_as_it_is():
    state = torch.zeros(1, 3, 4, 4)
    toward, away = (pair(torch.full_like(state, value), state, 0.5) for value in (0.5, 0.25))
    found = rescaled(plain, PATH, 1.0)(toward, away, 2.0, t_of(0.5))
    assert torch.equal(found.x, torch.full_like(state, 0.75))


# Adaptive projected guidance.


@calm
@given(w=st.floats(-2, 8), t=st.floats(0.01, 0.95))
def test_without_projection_bound_and_momentum_it_is_plain_guidance(w, t):
    state, toward, away = three(t=t)
    found = projected(PATH, APGConfig())(toward, away, w, t_of(t))
    expected = plain(toward, away, w, t_of(t))
    torch.testing.assert_close(found.x, expected.x)
    torch.testing.assert_close(found.eps, expected.eps)


def test_eta_zero_leaves_what_is_orthogonal_to_the_picture():
    state, toward, away = three()
    t = t_of(0.4)
    found = projected(PATH, APGConfig(eta=0.0))(toward, away, 3.0, t)
    added = flat(found.x - toward.x)
    assert (added * flat(toward.x)).sum(1).abs().max() < 1e-9
    both = projected(PATH, APGConfig(eta=0.4))(toward, away, 3.0, t)
    parallel = flat(plain(toward, away, 3.0, t).x - toward.x) - added
    torch.testing.assert_close(flat(both.x - toward.x), added + 0.4 * parallel)
    torch.testing.assert_close(PATH.mix(found.x, found.eps, t.expand(3)), state)


def test_the_threshold_bounds_the_root_mean_square():
    state, toward, away = three()
    difference = flat(toward.x - away.x)
    rms = difference.square().mean(1).sqrt()
    for threshold in (0.1, float(rms[0]) * 1.01, 10.0):
        rule = projected(PATH, APGConfig(threshold=threshold))
        added = flat(rule(toward, away, 2.0, t_of(0.4)).x - toward.x)
        expected = rms.clamp(max=threshold)
        torch.testing.assert_close(added.square().mean(1).sqrt(), expected)
        torch.testing.assert_close(added, difference * (expected / rms)[:, None])


@pytest.mark.parametrize("times", [(1, 1, 3, 2), (1, 4, 1, 1)])
def test_the_threshold_means_the_same_at_any_size_and_channel_count(times):
    def enlarge(x):
        return x.repeat(times)

    state, toward, away = three()
    larger = (Estimate(*(enlarge(part) for part in one[:2])) for one in (toward, away))
    apg = APGConfig(eta=0.2, threshold=0.3)
    small = projected(PATH, apg)(toward, away, 4.0, t_of(0.4))
    large = projected(PATH, apg)(*larger, 4.0, t_of(0.4))
    torch.testing.assert_close(large.x, enlarge(small.x))


def test_momentum_adds_a_share_of_the_sum_and_starts_anew_in_a_new_rule():
    first, second = three(1), three(2)
    t, apg = t_of(0.4), APGConfig(momentum=-0.6)
    rule = projected(PATH, apg)
    differences = [one[1].x - one[2].x for one in (first, second, first)]
    sums = [differences[0]]
    for difference in differences[1:]:
        sums.append(difference - 0.6 * sums[-1])
    for (_, toward, away), total in zip((first, second, first), sums, strict=True):
        found = rule(toward, away, 3.0, t)
        torch.testing.assert_close(found.x, toward.x + 2 * total)
    fresh = projected(PATH, apg)(second[1], second[2], 3.0, t)
    torch.testing.assert_close(fresh.x, second[1].x + 2 * differences[1])


def test_projection_comes_first_and_rescaling_last():
    state, toward, away = three()

    def field(one):
        return Field(lambda x, t: one, PATH)

    apg, t = APGConfig(eta=0.0, threshold=0.5), t_of(0.4)
    guidance = GuidanceConfig(scale=4.0, apg=apg, rescale=1.0)
    found = classifier_free(field(toward), field(away), guidance).estimate(state, t)
    middle = projected(PATH, apg)(toward, away, 4.0, t).x
    ratio = flat(toward.x).std(1) / flat(middle).std(1)
    torch.testing.assert_close(found.x, ratio.view(-1, 1, 1, 1) * middle)


def test_closures_compose_from_field_to_field():
    state, one, two = three()
    three_ = pair(one.x.flip(2), state, 0.4)

    def field(estimate):
        return Field(lambda x, t: estimate, PATH)

    inner = combined(field(one), field(two), lambda t: 2.0)
    outer = combined(inner, field(three_), lambda t: 1.5)
    expected = 1.5 * (2 * one.x - two.x) - 0.5 * three_.x
    torch.testing.assert_close(outer.estimate(state, t_of(0.4)).x, expected)


def test_half_precision_pictures_are_combined():
    _, toward, away = three()
    halves = [Estimate(*(part.bfloat16() for part in one[:2])) for one in (toward, away)]
    rule = rescaled(projected(PATH, APGConfig(eta=0.0, momentum=-0.5, threshold=0.4)), PATH, 0.7)
    exact = rescaled(projected(PATH, APGConfig(eta=0.0, momentum=-0.5, threshold=0.4)), PATH, 0.7)
    for _ in range(2):
        found = rule(*halves, 2.5, t_of(0.4))
        expected = exact(toward, away, 2.5, t_of(0.4))
        assert (found.x - expected.x).abs().max() < 0.05


# Known answers: fields whose scores are exact.


def gaussian(mean: torch.Tensor, std: float) -> Field:
    """The field of a normal distribution: E[x | x_t] in closed form."""

    def estimate(x, t):
        a, s = float(t), 1 - float(t)
        gain = a * std**2 / (a**2 * std**2 + s**2)
        picture = mean + gain * (x - a * mean)
        return Estimate(picture, (x - a * picture) / s)

    return Field(estimate, PATH)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 5.0])
def test_guiding_between_gaussians_gives_the_gaussian_of_the_formula(scale):
    """p_u^(1 - w) p_c^w of equal spread is normal around m_u + w (m_c - m_u) with that spread."""
    std, n = 0.5, 4000
    means = torch.tensor([[1.0, -2.0], [0.5, 1.0]]).double().view(2, 1, 2, 1)
    noise = torch.randn(n, 2, 1, generator=torch.manual_seed(0)).double()
    guidance = GuidanceConfig(scale=scale)
    field = classifier_free(gaussian(means[0], std), gaussian(means[1], std), guidance)
    x = heun(field, noise, time_grid(100))
    expected = means[1, 0] + scale * (means[0, 0] - means[1, 0])
    torch.testing.assert_close(x.mean(0), expected + std * noise.mean(0), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(x.std(0), std * noise.std(0), rtol=0.01, atol=0)


class Mixture:
    """Two normal clouds in the plane: the densities, and the exact fields, at every t."""

    centres = torch.tensor([[1.5, 0.0], [-1.0, 1.0]]).double()
    share, std = torch.tensor([0.3, 0.7]).double(), 0.4

    def log_density(self, x: torch.Tensor, t: float, cloud: int | None) -> torch.Tensor:
        variance = (t * self.std) ** 2 + (1 - t) ** 2
        apart = (x[:, None] - t * self.centres).square().sum(2)
        each = -apart / (2 * variance) - math.log(2 * math.pi * variance)
        return torch.logsumexp(each + self.share.log(), 1) if cloud is None else each[:, cloud]

    def field(self, cloud: int | None) -> Field:
        def estimate(x, t):
            a, s, points = float(t), 1 - float(t), x.flatten(1)
            variance = (a * self.std) ** 2 + s**2
            gain = a * self.std**2 / variance
            pictures = self.centres + gain * (points[:, None] - a * self.centres)
            apart = (points[:, None] - a * self.centres).square().sum(2)
            weight = torch.softmax(self.share.log() - apart / (2 * variance), 1)
            weight = weight if cloud is None else torch.eye(2).double()[cloud].expand_as(weight)
            picture = (weight[..., None] * pictures).sum(1).view_as(x)
            return Estimate(picture, (x - a * picture) / s)

        return Field(estimate, PATH)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_guided_scores_are_those_of_the_sharpened_density(t, scale):
    """The score is -eps / sigma, and the density p_u^(1 - w) p_c^w."""
    mixture, x = Mixture(), torch.randn(50, 2, 1, generator=torch.manual_seed(3)).double()
    guidance = GuidanceConfig(scale=scale)
    field = classifier_free(mixture.field(0), mixture.field(None), guidance)
    points = x.flatten(1).requires_grad_()
    log_p = (1 - scale) * mixture.log_density(points, t, None)
    log_p = log_p + scale * mixture.log_density(points, t, 0)
    score = torch.autograd.grad(log_p.sum(), points)[0].view_as(x)
    torch.testing.assert_close(-field.estimate(x, t_of(t)).eps / (1 - t), score)


def test_guidance_leads_samples_away_from_the_other_cloud():
    mixture = Mixture()
    noise = torch.randn(500, 2, 1, generator=torch.manual_seed(4)).double()
    away = torch.tensor([2.5, -1.0]).double()  # from the other centre to its own
    along = []
    for scale in (1.0, 2.0, 4.0):
        guidance = GuidanceConfig(scale=scale)
        field = classifier_free(mixture.field(0), mixture.field(None), guidance)
        x = heun(field, noise, time_grid(40)).flatten(1)
        along.append(float(((x - mixture.centres[0]) @ away).mean()))
    assert abs(along[0]) < 0.1 and along[0] < along[1] < along[2]


# What contradicts itself.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(lambda: GuidanceConfig(rescale=1.5), "guidance.rescale is 1.5; it lies in"),
     (lambda: GuidanceConfig(negative=3, auto=AutoConfig(run="a")), "guidance.auto names the refe"),
     (lambda: APGConfig(momentum=-1.0), r"guidance.apg.momentum is -1; it lies in \(-1, 1\)"),
     (lambda: APGConfig(threshold=-1.0), "guidance.apg.threshold is -1; it is 0 or more"),
     (lambda: APGConfig(eta=math.inf), "guidance.apg.eta is inf; it must be a finite number"),
     (lambda: PowerCosineSchedule(power=0.0), "guidance.schedule.power is 0; it must be above 0"),
     (lambda: ListSchedule(factors=(1.0,)), "give two or more")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()
